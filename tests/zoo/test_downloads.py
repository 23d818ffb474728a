"""Downloads, from a server on this machine."""

import contextlib
import hashlib
import http.server
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import DownloadError, InputError, UnknownNameError
from fpgasim.zoo import downloads

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; the path says how. `requests` collects (path, Range header)."""

    requests: list[tuple[str, str | None]]

    def do_GET(self):
        self.requests.append((self.path, self.headers["Range"]))
        how = self.path.split("/")[1]
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if self.headers["Range"] else 0
        if how == "missing":
            return self.send_error(404)
        if how in ("moved", "file", "ftp"):
            target = {"moved": "/good/w.pth", "file": "file:///etc/passwd", "ftp": "ftp://localhost/w.pth"}[how]
            return self.answer(302, b"", Location=target)
        if how == "ranges" and start >= len(CONTENT):
            return self.answer(416, b"", Content_Range=f"bytes */{len(CONTENT)}")
        if how == "shifted" and start:
            return self.answer(206, CONTENT[start + 1 :], Content_Range=f"bytes {start + 1}-999999/1000000")
        if how == "unsized":
            return self.answer(200, CONTENT, Content_Length=None)
        if how in ("ranges", "cut") and start:
            return self.answer(206, CONTENT[start:], Content_Range=f"bytes {start}-999999/1000000")
        body = b"x" * len(CONTENT) if how == "wrong" else CONTENT
        sent = 400_000 if how == "cut" else len(CONTENT)
        return self.answer(200, body[:sent], Content_Length=str(len(CONTENT)))

    def answer(self, status, body, **headers):
        headers = {"Content_Length": str(len(body))} | headers
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have heard enough
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def requests(monkeypatch):
    monkeypatch.setattr(Handler, "requests", [], raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return Handler.requests


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_whole_and_not_a_second_time(server, requests, tmp_path):
    seen = []
    for _ in range(2):
        options = {"sha256": SHA256, "folder": tmp_path, "progress": lambda *now: seen.append(now)}
        path = fs.zoo.fetch(f"{server}/good/w.pth", **options)
        assert path == tmp_path / "w.pth"
        assert path.read_bytes() == CONTENT
    assert files(tmp_path) == ["w.pth"]
    assert requests == [("/good/w.pth", None)]
    assert seen[-1] == (1_000_000, 1_000_000)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_the_cache_folder_is_the_one_of_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FPGASIM_CACHE_DIR", str(tmp_path / "deep" / "cache"))
    assert fs.zoo.fetch(f"{server}/good/w.pth", sha256=SHA256) == tmp_path / "deep" / "cache" / "w.pth"
    monkeypatch.delenv("FPGASIM_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = fs.zoo.fetch(f"{server}/good/w.pth", sha256=SHA256)
    assert path == tmp_path / "home" / ".cache" / "fpgasim" / "w.pth"


def test_the_first_digits_of_a_hash_do(server, tmp_path):
    assert fs.zoo.fetch(f"{server}/good/w.pth", sha256=SHA256[:8].upper(), folder=tmp_path).read_bytes() == CONTENT


def test_a_file_there_with_other_content_is_replaced(server, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"old")
    assert fs.zoo.fetch(f"{server}/good/w.pth", sha256=SHA256, folder=tmp_path).read_bytes() == CONTENT


def test_a_connection_dropped_in_the_middle_is_resumed_by_the_next_call(server, requests, tmp_path):
    with pytest.raises(DownloadError, match="the connection ended after 400000 of 1000000 bytes; fetch it again"):
        fs.zoo.fetch(f"{server}/cut/w.pth", sha256=SHA256, folder=tmp_path)
    assert files(tmp_path) == ["w.pth.part"]
    assert fs.zoo.fetch(f"{server}/cut/w.pth", sha256=SHA256, folder=tmp_path).read_bytes() == CONTENT
    assert requests == [("/cut/w.pth", None), ("/cut/w.pth", "bytes=400000-")]
    assert files(tmp_path) == ["w.pth"]


def test_a_server_without_ranges_starts_over(server, requests, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:1000])
    assert fs.zoo.fetch(f"{server}/good/w.pth", sha256=SHA256, folder=tmp_path).read_bytes() == CONTENT
    assert requests == [("/good/w.pth", "bytes=1000-")]


def test_a_part_that_is_whole_needs_no_request(server, requests, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    assert fs.zoo.fetch(f"{server}/ranges/w.pth", sha256=SHA256, folder=tmp_path).read_bytes() == CONTENT
    assert requests == []


def test_a_part_longer_than_the_file_is_dropped(server, requests, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"more")
    assert fs.zoo.fetch(f"{server}/ranges/w.pth", sha256=SHA256, folder=tmp_path).read_bytes() == CONTENT
    assert [header for _, header in requests] == ["bytes=1000004-", None]


def test_a_part_of_another_file_ends_in_a_mismatch_and_is_removed(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(b"y" * 1000)
    with pytest.raises(DownloadError, match=f"its SHA-256 is [0-9a-f]*, not {SHA256}…; what was fetched is removed"):
        fs.zoo.fetch(f"{server}/ranges/w.pth", sha256=SHA256, folder=tmp_path)
    assert files(tmp_path) == []
    assert fs.zoo.fetch(f"{server}/ranges/w.pth", sha256=SHA256, folder=tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_removed_and_the_old_file_stays(server, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"old")
    with pytest.raises(DownloadError, match="its SHA-256 is"):
        fs.zoo.fetch(f"{server}/wrong/w.pth", sha256=SHA256, folder=tmp_path)
    assert files(tmp_path) == ["w.pth"]
    assert (tmp_path / "w.pth").read_bytes() == b"old"


def test_an_answer_of_another_range_is_refused(server, tmp_path):
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match="sent HTTP 206 of another range than asked"):
        fs.zoo.fetch(f"{server}/shifted/w.pth", sha256=SHA256, folder=tmp_path)


def test_a_server_that_does_not_say_the_length_is_believed_by_the_hash(server, tmp_path):
    seen = []
    fs.zoo.fetch(f"{server}/unsized/w.pth", sha256=SHA256, folder=tmp_path, progress=lambda *now: seen.append(now))
    assert seen[-1] == (1_000_000, None)


def test_redirects_are_followed(server, requests, tmp_path):
    path = fs.zoo.fetch(f"{server}/moved/weights.pth", sha256=SHA256, folder=tmp_path)
    assert path == tmp_path / "weights.pth"
    assert [path for path, _ in requests] == ["/moved/weights.pth", "/good/w.pth"]


@pytest.mark.parametrize("how", ["file", "ftp"])
def test_redirects_out_of_http_are_refused(server, tmp_path, how):
    with pytest.raises(DownloadError, match=f"{how}/w.pth"):
        fs.zoo.fetch(f"{server}/{how}/w.pth", sha256=SHA256, folder=tmp_path)
    assert files(tmp_path) == []


def test_without_a_hash_the_file_is_fetched_anew_and_a_warning_logged(server, requests, tmp_path, caplog):
    (tmp_path / "w.pth").write_bytes(b"old")
    (tmp_path / "w.pth.part").write_bytes(b"part")
    assert fs.zoo.fetch(f"{server}/ranges/w.pth", folder=tmp_path).read_bytes() == CONTENT
    assert requests == [("/ranges/w.pth", None)]
    assert f"no known hash; its SHA-256 is {SHA256}" in caplog.text


def test_an_http_error_is_told(server, tmp_path):
    with pytest.raises(DownloadError, match=r"/missing/w\.pth: HTTP 404 Not Found"):
        fs.zoo.fetch(f"{server}/missing/w.pth", sha256=SHA256, folder=tmp_path)


def test_a_refused_connection_is_told(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match="Connection refused"):
        fs.zoo.fetch(f"http://127.0.0.1:{port}/w.pth", sha256=SHA256, folder=tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "only http and https are fetched"),
        ("ftp://host/w.pth", "only http and https are fetched"),
        ("http:///w.pth", "only http and https are fetched"),
        ("http://127.0.0.1/", "names no file"),
        ("http://127.0.0.1/a/..", "names no file"),
        ("http://127.0.0.1/a%2f..%2f..", "names no file"),
        ("http://127.0.0.1/a b", "URL can't contain control characters"),
    ],
)
def test_a_url_that_cannot_be_fetched_is_refused(tmp_path, url, message):
    with pytest.raises(DownloadError, match=message):
        fs.zoo.fetch(url, sha256=SHA256, folder=tmp_path)
    assert files(tmp_path) == []


def test_a_name_in_the_url_stays_in_the_folder(server, tmp_path):
    path = fs.zoo.fetch(f"{server}/good/..%2f..%2fevil.pth", sha256=SHA256, folder=tmp_path)
    assert path == tmp_path / "evil.pth"


def test_a_folder_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DownloadError, match=r"cannot be stored as '.*taken/w\.pth'"):
        fs.zoo.fetch(f"{server}/good/w.pth", sha256=SHA256, folder=tmp_path / "taken")


def test_a_malformed_hash_is_refused(tmp_path):
    for sha256 in ("0676ba6", "0676ba61x", "0" * 65, ""):
        with pytest.raises(InputError, match="8 to 64 hexadecimal digits would do"):
            fs.zoo.fetch("http://127.0.0.1/w.pth", sha256=sha256, folder=tmp_path)


def test_an_unknown_name_lists_the_sources():
    with pytest.raises(UnknownNameError, match="no source of weights 'lenet'; there are resnet50, resnet50-v2"):
        fs.zoo.fetch("lenet")


def test_a_name_brings_its_url_and_hash(server, tmp_path, monkeypatch):
    source = fs.zoo.Source("mine", "resnet50", f"{server}/good/w.pth", SHA256[:8], "a test")
    monkeypatch.setitem(downloads.SOURCES, "mine", source)
    assert source in fs.zoo.sources()
    assert fs.zoo.fetch("mine", folder=tmp_path).read_bytes() == CONTENT
    monkeypatch.setitem(downloads.SOURCES, "mine", fs.zoo.Source("mine", "resnet50", source.url, "0" * 8, "a test"))
    with pytest.raises(DownloadError, match="not 00000000…"):
        fs.zoo.fetch("mine", folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_url": 3}, "name_or_url=3 is no text; the name of a source or a URL would do"),
        ({"name_or_url": "resnet50", "sha256": 3}, "sha256=3; 8 to 64 hexadecimal digits would do"),
        ({"name_or_url": "resnet50", "folder": 3}, "folder=3 is no path"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        fs.zoo.fetch(**arguments)


def test_every_source_is_of_a_network_and_has_the_hash_its_file_name_carries():
    for source in fs.zoo.sources():
        assert source.network in fs.zoo.names()
        assert source.url.startswith("https://")
        assert f"-{source.sha256}." in source.url


def test_the_manual_lists_the_sources():
    manual = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    rows = [f"| `{s.name}` | `{s.network}` | {s.url} | `{s.sha256}` | {s.note} |" for s in fs.zoo.sources()]
    assert "\n".join(["| name | network | URL | SHA-256 begins | what |", "|---|---|---|---|---|", *rows, ""]) in manual
