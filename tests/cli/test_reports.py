"""`fpgasim report` writes what a plan costs in the forms that others read."""

import csv
import json
from itertools import pairwise

import pytest


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The four files about one network, and what the command printed."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("report")
    names = {"--csv": "l.csv", "--json-file": "l.json", "--trace": "t.json", "--roofline": "r.png"}
    options = [word for option, name in names.items() for word in (option, name)]
    command = [sys.executable, "-m", "fpgasim", "report", "resnet50", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return folder, done.stdout


def test_every_file_is_named_when_it_is_written(files):
    folder, output = files
    assert output.split() == ["wrote", "l.csv", "wrote", "l.json", "wrote", "t.json", "wrote", "r.png"]
    assert sorted(path.name for path in folder.iterdir()) == ["l.csv", "l.json", "r.png", "t.json"]
    assert (folder / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_has_a_row_a_layer_whose_cycles_follow_one_another(files):
    folder, _ = files
    rows = list(csv.DictReader((folder / "l.csv").read_text().splitlines()))
    twin = json.loads((folder / "l.json").read_text())
    assert [row["layer"] for row in rows] == [row["layer"] for row in twin["layers"]]
    assert twin["provenance"]["device"] == "bw_a10"
    for before, after in pairwise(rows):
        assert int(after["start"]) == int(before["end"]) + int(before["stall_cycles"])
    assert int(rows[-1]["end"]) + int(rows[-1]["stall_cycles"]) == twin["cycles"]
    stem = rows[0]
    assert (stem["m"], stem["n"], stem["k"]) == (str(112 * 112), "64", "147")
    assert int(stem["m"]) * int(stem["n"]) * int(stem["k"]) == int(stem["macs"])


def test_the_timeline_has_its_tracks_and_no_two_slices_of_one_overlap(files):
    folder, _ = files
    trace = json.loads((folder / "t.json").read_text())
    tracks = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert list(tracks.values()) == ["DMA in", "weights", "MVM", "MFU", "DMA out", "CPU"]
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {tracks[event["tid"]] for event in slices} == set(tracks.values())
    for tid in tracks:
        mine = sorted((event["ts"], event["ts"] + event["dur"]) for event in slices if event["tid"] == tid)
        assert all(end <= begin + 1e-6 for (_, end), (begin, _) in pairwise(mine))
    assert trace["otherData"]["device"] == "bw_a10"


def test_without_a_file_the_table_is_printed(fpgasim):
    assert "compute cycles" in fpgasim("report", "resnet50").stdout


def test_as_json_the_rows_are_printed(fpgasim):
    assert len(json.loads(fpgasim("report", "resnet50", "--json").stdout)["layers"]) == 57


def test_a_picture_of_an_unknown_kind_is_refused_before_any_work(refused):
    message = refused("report", "resnet50", "--roofline", "r.bmp", exit_code=4)
    assert message == "picture 'r.bmp': .png or .svg would do"


def test_a_file_that_cannot_be_written_is_one_line(refused):
    message = refused("report", "resnet50", "--csv", "/nowhere/l.csv", exit_code=4)
    assert message == "/nowhere/l.csv: No such file or directory; a path that can be written would do"
