"""`fpgasim sweep`: a table, a picture, one object."""

import csv
import json


def test_the_command_writes_the_table_and_the_picture(fpgasim, tmp_path):
    table, picture = tmp_path / "s.csv", tmp_path / "s.png"
    options = ("--bandwidth", "17e9,34e9", "--clock", "3e8", "--csv", str(table), "--plot", str(picture))
    output = fpgasim("sweep", "resnet50", *options).stdout
    found = list(csv.DictReader(table.read_text().splitlines()))
    assert [float(row["dram_gb_per_s"]) for row in found] == [17.0, 34.0]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "no other is both as quick and as small" in output
    assert output.split("\n")[0].split()[-6:] == ["utilization", "ALMs", "M20Ks", "DSPs", "area", "note"]
    row = found[0]
    area = int(row["alms"]) + 40 * int(row["m20ks"]) + 30 * int(row["dsps"])
    assert f"{int(row['m20ks']):,}" in output
    assert f"{area:,}" in output
    printed = json.loads(fpgasim("sweep", "resnet50", "--bandwidth", "17e9", "--json").stdout)
    assert printed["rows"][0]["cycles"] == int(found[0]["cycles"])


def test_an_unknown_format_is_refused_before_the_model_is_opened(fpgasim):
    assert "no format 'zz'; there are" in fpgasim("sweep", "missing.onnx", "--format", "zz", exit_code=4).stderr


def test_what_is_no_list_of_numbers_is_a_usage_error(fpgasim):
    result = fpgasim("sweep", "resnet50", "--tiles", "4;8", exit_code=2)
    assert "'4;8' is no list of numbers, such as 8,16" in result.stderr
