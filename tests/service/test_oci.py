"""Images as files: the same bytes for the same entries, every hash checked, nothing written outside."""

import gzip
import io
import json
import os
import tarfile

import pytest

from fpgasim.errors import InputError, ServiceError
from fpgasim.service import oci
from fpgasim.service.oci import Entry

ENTRIES = {
    "usr/bin/tool": Entry(b"#!/bin/sh\n", 0o755),
    "usr/bin/alias": Entry(link="tool", mode=0o777),
    "tmp": Entry(mode=0o1777),
    "etc/" + "long" * 40: Entry(b"x" * 3000),
}


def layer(entries=ENTRIES, compress=True):
    file = io.BytesIO()
    return oci.write_layer(entries, file, compress), file.getvalue()


@pytest.fixture
def layout(tmp_path):
    """A layout folder of two layers, one compressed and one plain."""
    made = [layer(), layer({"model/m.onnx": Entry(b"model")}, compress=False)]
    files = oci.documents([one for one, _ in made], {"Entrypoint": ["/usr/bin/tool"]}, "latest")
    files |= {oci.blob(one.sha256): data for one, data in made}
    root = tmp_path / "layout"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("compress", [True, False])
def test_the_same_entries_in_any_order_and_of_any_age_are_the_same_bytes(tmp_path, compress):
    path = tmp_path / "tool"
    path.write_bytes(b"#!/bin/sh\n")
    os.utime(path, (5, 5))
    other = {name: ENTRIES[name] for name in reversed(ENTRIES)} | {"usr/bin/tool": Entry(path, 0o755)}
    assert layer(compress=compress) == layer(other, compress)
    assert oci.key(ENTRIES, compress) == oci.key(other, compress)


@pytest.mark.parametrize(
    "change",
    [
        {"tmp": Entry(mode=0o777)},
        {"usr/bin/alias": Entry(link="other", mode=0o777)},
        {"usr/bin/tool": Entry(b"#!/bin/no\n", 0o755)},
        {"usr/bin/new": Entry(b"")},
    ],
)
def test_another_mode_link_content_or_path_is_another_key_and_another_layer(change):
    other = ENTRIES | change
    assert oci.key(other) != oci.key(ENTRIES)
    assert layer(other)[0].diff_id != layer()[0].diff_id


def test_a_key_tells_compressed_from_plain():
    assert oci.key(ENTRIES, True) != oci.key(ENTRIES, False)


def test_a_layer_has_folders_before_what_is_in_them_and_belongs_to_root():
    made, data = layer()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member for member in tar}
    names = list(members)
    assert names.index("usr") < names.index("usr/bin") < names.index("usr/bin/tool")
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members.values()} == {(0, 0, "", "", 0)}
    assert members["tmp"].mode == 0o1777
    assert members["usr/bin/alias"].linkname == "tool"
    assert data[4:8] == b"\0\0\0\0"  # gzip's time
    assert made.size == len(data)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "a//b", "."])
def test_an_entry_outside_the_root_is_refused(name):
    with pytest.raises(InputError, match="path"):
        layer({name: Entry(b"")})


def test_an_entry_below_a_file_or_link_is_refused():
    with pytest.raises(InputError, match="no folder"):
        layer({"a": Entry(link="/etc"), "a/b": Entry(b"")})


def test_a_folder_and_its_tar_verify_as_the_same_image(layout, tmp_path):
    found = oci.verify(layout)
    assert found.reference == "latest"
    assert found.config["config"]["Entrypoint"] == ["/usr/bin/tool"]
    assert [one.media_type.endswith("+gzip") for one in found.layers] == [True, False]
    files = {path.relative_to(layout).as_posix(): path for path in layout.rglob("*") if path.is_file()}
    for name in ("a.tar", "b.tar"):
        with (tmp_path / name).open("wb") as file:
            oci.archive(files, file)
    assert oci.verify(tmp_path / "a.tar") == found
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_one_changed_byte_in_any_file_is_found(layout):
    for path in sorted(path for path in layout.rglob("*") if path.is_file()):
        sound = path.read_bytes()
        path.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:])
        with pytest.raises((ServiceError, InputError)):
            oci.verify(layout)
        path.write_bytes(sound)
        oci.verify(layout)


def test_a_missing_blob_and_a_foreign_one_are_found(layout):
    stray = layout / oci.blob("0" * 64)
    stray.write_bytes(b"not zeros")
    with pytest.raises(ServiceError, match="0000"):
        oci.verify(layout)
    stray.unlink()
    path = layout / oci.blob(oci.verify(layout).layers[1].sha256)
    path.unlink()
    with pytest.raises(ServiceError, match="has no file"):
        oci.verify(layout)


def test_a_layer_that_is_not_what_its_config_says_is_found(layout):
    index = json.loads((layout / "index.json").read_text())
    made, data = layer({"evil": Entry(b"")})
    honest = oci.verify(layout).layers
    claimed = oci.Layer(made.sha256, honest[0].diff_id, made.size, made.media_type)
    (layout / oci.blob(made.sha256)).write_bytes(data)
    for name, text in oci.documents([claimed, honest[1]], {}, "latest").items():
        (layout / name).write_bytes(text)
    assert json.loads((layout / "index.json").read_text()) != index
    with pytest.raises(ServiceError, match="hash of its tar"):
        oci.verify(layout)


def test_what_is_no_layout_is_refused(tmp_path):
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(InputError, match="neither an image layout nor its tar"):
        oci.verify(tmp_path / "text.tar")
    with pytest.raises(InputError, match="neither an image layout nor its tar"):
        oci.verify(tmp_path / "nothing")
    with pytest.raises(ServiceError, match="has no file 'oci-layout'"):
        oci.verify(tmp_path)


def test_layers_unpack_one_over_the_other(layout, tmp_path):
    oci.unpack(layout, tmp_path / "root")
    root = tmp_path / "root"
    assert (root / "model/m.onnx").read_bytes() == b"model"
    assert os.access(root / "usr/bin/tool", os.X_OK)
    assert (root / "usr/bin/alias").readlink().name == "tool"
    with pytest.raises(InputError, match="already"):
        oci.unpack(layout, root)


def test_a_layer_that_leads_out_is_not_unpacked(tmp_path):
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "outside")
        tar.addfile(link)
        file = tarfile.TarInfo("out/file")
        file.size = 4
        tar.addfile(file, io.BytesIO(b"evil"))
    (tmp_path / "outside").mkdir()
    packed = gzip.compress(evil.getvalue(), mtime=0)
    made = oci.Layer(
        oci._hash(packed), oci._hash(evil.getvalue()), len(packed), "application/vnd.oci.image.layer.v1.tar+gzip"
    )
    root = tmp_path / "layout"
    for name, data in {**oci.documents([made], {}, "x"), oci.blob(made.sha256): packed}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    with pytest.raises(ServiceError, match="leads out"):
        oci.unpack(root, tmp_path / "root")
    assert not list((tmp_path / "outside").iterdir())
