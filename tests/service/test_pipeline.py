"""`ModelDefinition`: stages that fit one another, the same bytes each time, and zips that would do harm."""

import dataclasses
import hashlib
import json
import stat
import struct
import zipfile

import numpy as np
import onnx
import pytest

import fpgasim as fs
from fpgasim.errors import InputError, ModelError, PlacementError, UnknownNameError
from fpgasim.service import CpuStage, FpgaStage, KerasStage, ModelDefinition, OnnxStage, bundles, servable
from fpgasim.service.pipeline import Target

from .small import PICTURES, classifier, featurizer, linear, model, picture, strings, two_outputs

X = np.array([[1, 2, 3, 4]], np.float32)


def of(*stages, **arguments):
    definition = ModelDefinition(**arguments)
    definition.pipeline += stages
    return definition


def pictures():
    return of(
        CpuStage(PICTURES, output="tensors:0"),
        FpgaStage(featurizer(), name="features", layout="NHWC"),
        CpuStage(classifier(), layout="NHWC", name="classes"),
        name="pictures",
        labels=["a", "b", "c"],
    )


def manifest_of(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("manifest.json"))


def rewritten(path, target, change=None, replace=None, add=(), leave_out=()):
    """`path` with its manifest changed, entries replaced, added (ZipInfo or name, data) or left out."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename == "manifest.json" and change is not None:
                facts = json.loads(data)
                changed = change(facts)
                data = json.dumps(facts if changed is None else changed).encode()
            if info.filename not in leave_out:
                new.writestr(info.filename, (replace or {}).get(info.filename, data))
        for info, data in add:
            new.writestr(info, data)
    return target


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "service_def.zip"
    pictures().save(path)
    return path


def test_a_saved_definition_gives_the_same_bits_as_the_one_that_was_made(saved):
    images = {"images": strings(picture(1), picture(2))}
    expected = pictures().servable().run(images).outputs["output_alias"]
    loaded = ModelDefinition.load(saved)
    assert (loaded.name, loaded.labels) == ("pictures", ["a", "b", "c"])
    assert np.array_equal(loaded.servable().run(images).outputs["output_alias"], expected)
    assert servable(saved).labels == ("a", "b", "c")
    assert [stage.name for stage in servable(saved).steps] == ["preprocessing", "features", "classes"]


def test_the_same_definition_makes_the_same_bytes(saved, tmp_path):
    pictures().save(tmp_path / "again.zip")
    ModelDefinition.load(saved).save(tmp_path / "once more.zip")
    assert saved.read_bytes() == (tmp_path / "again.zip").read_bytes() == (tmp_path / "once more.zip").read_bytes()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o644


def test_the_manifest_says_what_every_file_must_hash_to_and_how_pictures_are_made_tensors(saved):
    manifest = manifest_of(saved)
    assert (manifest["schema"], manifest["version"]) == ("fpgasim/service-definition", 1)
    with zipfile.ZipFile(saved) as archive:
        assert sorted(archive.namelist()) == ["2-features.onnx", "3-classes.onnx", "manifest.json"]
        for name, facts in manifest["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == facts["sha256"]
            assert len(archive.read(name)) == facts["size"]
    first, second, _ = manifest["pipeline"]
    assert first["type"] == "preprocessing"
    assert first["way"] == "azure"
    assert fs.zoo.AzurePreprocessing(**first["parameters"]) == PICTURES
    assert first["inputs"] == {"Placeholder:0": "images"}
    assert (second["type"], second["file"], second["device"]) == ("fpga", "2-features.onnx", None)
    assert set(manifest["environment"]) == {"python_version", "package_version"}


def test_pillows_preprocessing_is_kept_as_well(tmp_path):
    spec = dataclasses.replace(fs.zoo.PREPROCESSINGS["torchvision"], size=8, shorter_side=10)
    of(CpuStage(spec, layout="NCHW"), FpgaStage(featurizer())).save(tmp_path / "d.zip")
    stage = ModelDefinition.load(tmp_path / "d.zip").pipeline[0]
    assert stage.work == spec
    assert stage.layout == "NCHW"


def test_layouts_are_turned_at_the_border_of_a_stage():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    turned = of(FpgaStage(featurizer(), layout="NHWC")).servable().run({"input": x}).outputs["features"]
    plain = of(FpgaStage(featurizer())).servable().run({"input": x.transpose(0, 3, 1, 2)}).outputs["features"]
    assert turned.shape == (2, 1, 1, 4)
    assert np.array_equal(turned.reshape(2, 4), plain.reshape(2, 4))


def test_stages_are_linked_by_name_else_in_order():
    same = of(OnnxStage(linear(rows=4, columns=4)), OnnxStage(linear(rows=4, columns=3)))
    assert same.servable().run({"x": X}).outputs["y"].shape == (1, 3)
    crossed = model("m (float[N, 2] b, float[N, 2] a) => (float[N, 2] y) { y = Sub (b, a) }")
    x = np.array([[-1, 2]], np.float32)
    result = of(OnnxStage(two_outputs()), OnnxStage(crossed)).servable().run({"x": x}).outputs["y"]
    np.testing.assert_allclose(result, 1 / (1 + np.exp(-x)) - np.maximum(x, 0), rtol=1e-6)


def test_stages_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="the pipeline is empty"):
        assert of().signature
    with pytest.raises(InputError, match=r"stage 2 \(b\) takes 'x', .*but stage 1 \(a\) makes 'y', float32 of shape"):
        of(OnnxStage(linear(), name="a"), OnnxStage(linear(), name="b")).servable()
    with pytest.raises(InputError, match=r"stage 2 \(onnx\) takes 'x', but stage 1 \(onnx\) makes 'a', 'b'"):
        of(OnnxStage(two_outputs()), OnnxStage(linear(rows=2))).servable()
    with pytest.raises(InputError, match="got a str"):
        of("stage").servable()
    with pytest.raises(InputError, match=r"an input and an output are called 'x'; .* renames one"):
        of(OnnxStage(linear(columns=4)), OnnxStage(linear("y", "x"))).save("nowhere.zip")


def test_stages_of_the_same_name_are_told_apart():
    two = of(FpgaStage(linear(columns=4)), FpgaStage(linear(columns=3))).servable()
    assert list(two.run({"x": X}).stage_seconds) == ["fpga", "fpga_2"]
    assert len(two.plans) == 2


def test_input_and_output_choose_and_rename_tensors_of_a_graph():
    graph = classifier()
    logits = of(CpuStage(graph, "f", "l"))
    assert [spec.name for spec in logits.signature.inputs] == ["f"]
    assert logits.servable().run({"f": np.ones((1, 4), np.float32)}, ["l"]).outputs["l"].shape == (1, 3)
    renamed = of(CpuStage(graph, {"in:0": "features"}, {"out:0": "probabilities"}))
    assert renamed.signature.aliases == {"images": "in:0", "output_alias": "out:0"}
    with pytest.raises(InputError, match="no tensor 'z'"):
        CpuStage(graph, "z")
    with pytest.raises(InputError, match="does not choose among them"):
        CpuStage(PICTURES, {"a": "b"})


def test_aliases_may_be_other_words(tmp_path):
    of(OnnxStage(linear()), aliases={"question": "x", "answer": "y"}).save(tmp_path / "d.zip")
    s = servable(tmp_path / "d.zip")
    assert list(s.run({"question": X}).outputs) == ["answer"]
    with pytest.raises(InputError, match="no input 'images'"):
        s.run({"images": X})


def test_fpga_stages_are_planned_when_served_for_what_is_asked_then():
    definition = of(FpgaStage(linear(rows=40)), FpgaStage(linear(rows=3), device="bw_s10", format="msfp11"))
    first, second = definition.servable(Target("bw_a10", "msfp16")).plans
    assert (first.device.name, first.numbers.format.name) == ("bw_a10", "msfp16")
    assert (second.device.name, second.numbers.format.name) == ("bw_s10", "msfp11")


def test_a_planned_definition_carries_its_plans(tmp_path):
    definition = of(FpgaStage(linear(rows=4)))
    assert definition.plans == ()
    planned = definition.planned(Target("bw_s10", "msfp11"))
    planned.save(tmp_path / "planned.zip")
    loaded = ModelDefinition.load(tmp_path / "planned.zip")
    assert loaded.plans == planned.plans
    assert servable(tmp_path / "planned.zip", device="bw_a10").plans[0].device.name == "bw_s10"
    assert np.array_equal(loaded.servable().run({"x": X}).outputs["y"], planned.servable().run({"x": X}).outputs["y"])


def test_require_fpga_is_an_error_where_a_node_cannot_be_there(tmp_path):
    of(FpgaStage(classifier(), require_fpga=True)).save(tmp_path / "d.zip")
    with pytest.raises(PlacementError, match="require_fpga"):
        servable(tmp_path / "d.zip")
    with pytest.raises(PlacementError, match="require_fpga"):
        of(FpgaStage(classifier())).planned(require_fpga=True)


def test_a_device_of_ones_own_is_planned_for_at_once_so_that_the_file_holds_it(tmp_path):
    device = dataclasses.replace(fs.npu.get_device("bw_a10"), name="mine", clock_hz=10**8)
    definition = of(FpgaStage(linear(), device=device))
    assert definition.plans[0].device == device
    definition.save(tmp_path / "d.zip")
    assert servable(tmp_path / "d.zip").plans[0].device == device


def test_what_an_fpga_stage_cannot_be_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="no device 'bw_x'"):
        FpgaStage(linear(), device="bw_x")
    with pytest.raises(UnknownNameError, match="no format 'int4'"):
        FpgaStage(linear(), format="int4")
    plan = fs.partition(linear(), "bw_a10", "bw_1s5e5m")
    with pytest.raises(InputError, match="a plan is for bw_a10 in bw_1s5e5m; leave device and format out"):
        FpgaStage(plan, device="bw_s10")
    of(FpgaStage(plan)).save(tmp_path / "d.zip")
    with pytest.raises(ModelError, match="is a whole definition"):
        FpgaStage(tmp_path / "d.zip")


def test_a_stage_takes_files(tmp_path):
    linear().save(tmp_path / "m.onnx")
    fs.partition(linear(), "bw_a10", "bw_1s5e5m").save(tmp_path / "m.fpgaplan")
    graphs = [OnnxStage(tmp_path / "m.onnx").work, FpgaStage(tmp_path / "m.onnx").work]
    assert all(isinstance(graph, fs.Graph) for graph in graphs)
    assert isinstance(FpgaStage(tmp_path / "m.fpgaplan").work, fs.Plan)


def test_a_keras_model_that_exports_itself_is_a_stage():
    class Exporting:
        def export(self, path, format):
            assert format == "onnx"
            linear().save(path)

    for source in (Exporting(), linear()):
        assert of(KerasStage(source)).servable().run({"x": X}).outputs["y"].shape == (1, 3)


def test_an_unwritable_path_is_one_clear_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be written: No such file"):
        pictures().save(tmp_path / "no" / "d.zip")
    with pytest.raises(InputError, match="path=3 is no path"):
        pictures().save(3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# Zips that somebody else made


def info(name, **fields):
    made = zipfile.ZipInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "a/../../escape",
        "/etc/passwd",
        "C:/windows",
        "a\\b",
        "a//b",
        "./a",
        "a/./b",
        "x" * 300,
        "a\nb",
        "a\x01b",
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused(saved, tmp_path, name):
    bad = rewritten(saved, tmp_path / "bad.zip", add=[(info(name), b"x")])
    with pytest.raises(ModelError, match=r"leads out of the archive|has a name that is refused"):
        ModelDefinition.load(bad)
    assert not (tmp_path.parent / "escape").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_special_file_is_refused(saved, tmp_path, kind):
    link = info("link", create_system=3, external_attr=(kind | 0o777) << 16)
    with pytest.raises(ModelError, match="'link' is a link or a special file"):
        ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", add=[(link, b"/etc/passwd")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["manifest.json", "MANIFEST.JSON"])
def test_an_entry_may_occur_once(saved, tmp_path, name):
    with pytest.raises(ModelError, match="has two entries"):
        ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", add=[(info(name), b"{}")]))


def test_a_bomb_is_refused_before_it_is_unpacked(saved, tmp_path):
    bomb = info("2-features.onnx", compress_type=zipfile.ZIP_DEFLATED)
    bad = rewritten(saved, tmp_path / "bad.zip", leave_out=["2-features.onnx"], add=[(bomb, bytes(50_000_000))])
    assert bad.stat().st_size < 200_000
    with pytest.raises(ModelError, match=r"would grow from [0-9]+ to 50000000 bytes"):
        ModelDefinition.load(bad)


def test_a_size_that_is_a_lie_is_found(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    at = data.index(b"PK\x01\x02")  # the first entry of the directory is the manifest's
    data[at + 24 : at + 28] = struct.pack("<I", 40_000)
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(ModelError, match=r"bad.zip"):
        ModelDefinition.load(tmp_path / "bad.zip")


def test_too_many_and_too_large_entries_are_refused(saved, tmp_path, monkeypatch):
    many = rewritten(saved, tmp_path / "many.zip", add=[(info(f"f{i}"), b"") for i in range(bundles.MAX_ENTRIES)])
    with pytest.raises(ModelError, match="has 1003 entries; at most 1000 are taken"):
        ModelDefinition.load(many)
    monkeypatch.setattr(bundles, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"would unpack to [0-9]+ bytes; at most 1000 are taken"):
        ModelDefinition.load(saved)


def test_an_encrypted_entry_is_refused(saved, tmp_path):
    data = bytearray(saved.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "bad.zip").write_bytes(data)
    with pytest.raises(ModelError, match="is encrypted"):
        ModelDefinition.load(tmp_path / "bad.zip")


def test_another_compression_is_refused(saved, tmp_path):
    odd = info("odd", compress_type=zipfile.ZIP_LZMA)
    with pytest.raises(ModelError, match="is compressed by method 14"):
        ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", add=[(odd, b"x")]))


def test_a_definition_zipped_anew_with_compression_still_loads(saved, tmp_path):
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "new.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert len(ModelDefinition.load(tmp_path / "new.zip").pipeline) == 3


def test_a_changed_file_is_found_by_its_hash(saved, tmp_path):
    other = linear().to_proto().SerializeToString()
    bad = rewritten(saved, tmp_path / "bad.zip", replace={"3-classes.onnx": other})
    with pytest.raises(ModelError, match=r"'3-classes.onnx' is not what the manifest says: its hash differs"):
        ModelDefinition.load(bad)


def test_files_that_nobody_names_or_that_are_not_there_are_refused(saved, tmp_path):
    for arguments in ({"add": [(info("more.txt"), b"x")]}, {"leave_out": ["3-classes.onnx"]}):
        with pytest.raises(ModelError, match=r"the stages name the files .* and the archive holds"):
            ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", **arguments))


def test_another_schema_or_version_is_named(saved, tmp_path):
    def schema(facts):
        facts["schema"] = "other"

    def version(facts):
        facts["version"] = 2

    with pytest.raises(ModelError, match="has schema 'other'; 'fpgasim/service-definition' would do"):
        ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", schema))
    with pytest.raises(ModelError, match="is of version 2; this fpgasim reads 1"):
        ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", version))


def put(value, *path):
    def change(facts):
        inside = facts
        for key in path[:-1]:
            inside = inside[key]
        if value is KeyError:
            del inside[path[-1]]
        else:
            inside[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(put(KeyError, key) for key in ("name", "aliases", "labels", "pipeline", "files")),
        *(
            put(KeyError, "pipeline", 1, key)
            for key in ("type", "name", "inputs", "outputs", "layout", "device", "format")
        ),
        *(put(value, "pipeline") for value in ([], {}, [3], None, "abc", [{}])),
        *(put(value, "files") for value in ([], {}, 3)),
        put("x", "files", "2-features.onnx"),
        put(["x"], "pipeline", 1, "file"),
        put("rpc", "pipeline", 1, "type"),
        put("preprocessing", "pipeline", 1, "type"),
        put("onnx", "pipeline", 0, "type"),
        put({"a": "b"}, "pipeline", 1, "inputs"),
        put({"a": 3}, "pipeline", 1, "inputs"),
        put("sideways", "pipeline", 1, "layout"),
        put([], "pipeline", 1, "layout"),
        put("bw_x", "pipeline", 1, "device"),
        put("/etc/device.yaml", "pipeline", 1, "device"),
        put({}, "pipeline", 1, "device"),
        put("int4", "pipeline", 1, "format"),
        put([], "pipeline", 1, "format"),
        put("x" * 101, "pipeline", 1, "name"),
        put(3, "pipeline", 1, "name"),
        put({"question": "nothing"}, "aliases"),
        put([1], "labels"),
        put(3, "name"),
        put("sharp", "pipeline", 0, "way"),
        put([], "pipeline", 0, "way"),
        put({}, "pipeline", 0, "parameters"),
        put({"order": "RGB", "shell": "rm"}, "pipeline", 0, "parameters"),
        put("big", "pipeline", 0, "parameters", "output_height"),
        put(1 << 40, "pipeline", 0, "parameters", "output_height"),
        put([1, 2], "pipeline", 0, "parameters", "scaling_factor"),
        put(9, "pipeline", 0, "parameters", "output_width"),
        lambda facts: [facts],
        lambda facts: {},
    ],
)
def test_a_manifest_that_makes_no_sense_is_a_clear_error(saved, tmp_path, change):
    bad = rewritten(saved, tmp_path / "bad.zip", change)
    assert manifest_of(bad) != manifest_of(saved)
    with pytest.raises(ModelError, match=r"bad\.zip"):
        ModelDefinition.load(bad)


@pytest.mark.parametrize("text", [b"", b"[", b"\xff\xfe", b"[" * 100_000, b'{"schema": NaN}', b" " * (5 << 20)])
def test_a_manifest_that_is_no_json_is_a_clear_error(saved, tmp_path, text):
    with pytest.raises(ModelError, match=r"bad\.zip"):
        ModelDefinition.load(rewritten(saved, tmp_path / "bad.zip", replace={"manifest.json": text}))


def hashed(name, data):
    """A change of the manifest that makes `data` what the file `name` should be."""
    return put({"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}, "files", name)


def test_weights_outside_of_the_zip_are_refused(saved, tmp_path):
    proto = classifier().to_proto()
    (tensor,) = (t for t in proto.graph.initializer if t.name == "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    data = proto.SerializeToString()
    bad = rewritten(saved, tmp_path / "bad.zip", hashed("3-classes.onnx", data), {"3-classes.onnx": data})
    with pytest.raises(ModelError, match="'w' lies in file '/etc/passwd'"):
        ModelDefinition.load(bad)


@pytest.mark.parametrize(
    "data",
    [b"", b"not ONNX", b"\x08\x09", bytes(range(255, 155, -1))],
    ids=["empty", "text", "cut", "noise"],
)
def test_a_stage_whose_file_is_no_model_is_a_clear_error(saved, tmp_path, data):
    bad = rewritten(saved, tmp_path / "bad.zip", hashed("3-classes.onnx", data), {"3-classes.onnx": data})
    with pytest.raises(ModelError, match=r"bad\.zip"):
        ModelDefinition.load(bad)


def test_a_damaged_plan_inside_is_a_clear_error(tmp_path):
    of(FpgaStage(linear())).planned().save(tmp_path / "d.zip")
    bad = rewritten(
        tmp_path / "d.zip", tmp_path / "bad.zip", hashed("1-fpga.fpgaplan", b"junk"), {"1-fpga.fpgaplan": b"junk"}
    )
    with pytest.raises(ModelError, match=r"bad\.zip"):
        ModelDefinition.load(bad)


def test_no_damage_of_single_bytes_does_more_than_an_error(tmp_path):
    of(OnnxStage(linear())).save(tmp_path / "d.zip")
    good = (tmp_path / "d.zip").read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(good)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        (tmp_path / "bad.zip").write_bytes(data[: random.integers(len(data) // 2, 2 * len(data))])
        try:
            loaded = ModelDefinition.load(tmp_path / "bad.zip")
        except ModelError:
            continue
        assert np.array_equal(
            loaded.servable().run({"x": X}).outputs["y"], of(OnnxStage(linear())).servable().run({"x": X}).outputs["y"]
        )
