"""Plans in files."""

import dataclasses
import json
import zipfile

import pytest

import fpgasim as fs
from fpgasim.errors import ModelError

from .nets import Net, classifier, sandwich


@pytest.fixture
def plan():
    return fs.partition(sandwich(), "bw_a10", "bw_1s5e5m", objective="coverage")


@pytest.fixture
def saved(plan, tmp_path):
    path = tmp_path / "net.plan"
    plan.save(path)
    return path


def rewrite(path, change=lambda facts: facts, model=None, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        facts, old = json.loads(archive.read("plan.json")), archive.read("model.onnx")
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("plan.json", json.dumps(change(facts)))
        archive.writestr("model.onnx", old if model is None else model)


def test_a_plan_read_back_is_equal(plan, saved):
    again = fs.Plan.load(saved)
    assert again == plan
    assert again.explain() == plan.explain()
    assert again.source_graph.symbols == ("N",)
    assert again.replan({"x": (2, 64, 16, 16)}) == plan.replan({"x": (2, 64, 16, 16)})


def test_devices_and_formats_of_ones_own_are_in_the_file(tmp_path):
    base = fs.npu.get_device("bw_s10")
    device = dataclasses.replace(base, name="mine", native_dim=192, lanes=24, assumed=frozenset({"launch_s"}))
    fmt = fs.BlockFormat("mine7", mantissa_bits=7, exponent_bits=8, block=64)
    plan = fs.partition(classifier(), device, fmt, pointwise="bf16", dims={"N": 2})
    plan.save(tmp_path / "plan")
    again = fs.Plan.load(tmp_path / "plan")
    assert again == plan
    assert (again.device, again.numbers) == (device, plan.numbers)


def test_a_plan_whose_input_has_no_shape_comes_back(tmp_path):
    net = Net(shape=None)
    plan = fs.partition(net.graph(net.op("Relu", "x")), "bw_a10", "msfp16")
    plan.save(tmp_path / "plan")
    assert fs.Plan.load(tmp_path / "plan") == plan


def test_the_same_plan_makes_the_same_bytes(plan, saved, tmp_path):
    fs.Plan.load(saved).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"plan file '.*none' cannot be read: No such file"):
        fs.Plan.load(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_a_truncated_file_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ModelError, match="is damaged"):
        fs.Plan.load(saved)


def test_a_flipped_bit_is_refused(saved):
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ModelError, match="is damaged"):
        fs.Plan.load(saved)


def test_another_kind_of_zip_is_refused(tmp_path, saved):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ModelError, match="is no plan"):
        fs.Plan.load(tmp_path / "other.zip")
    rewrite(saved, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="is no plan"):
        fs.Plan.load(saved)


def without(*keys):
    return lambda facts: {key: value for key, value in facts.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts | {"version": 2}, "is of version 2; this fpgasim reads version 1"),
        (lambda facts: [facts], "is of version None"),
        (lambda facts: facts | {"fingerprint": "0" * 64}, "the model is not the one the plan was made for"),
        (lambda facts: facts | {"bound_fingerprint": "0" * 64}, "the model is not the one the plan was made for"),
        (without("device"), "is damaged: lacks 'device'"),
        (without("lower_bound_s"), "is damaged: lacks 'lower_bound_s'"),
        (lambda facts: facts | {"decisions": facts["decisions"][1:]}, "are not about the nodes"),
        (lambda facts: facts | {"decisions": [{"node": "x"}]}, "is damaged"),
        (lambda facts: facts | {"device": facts["device"] | {"lanes": 7}}, "lanes=7 must be a divisor"),
        (lambda facts: facts | {"cost_graph": {}}, "cost graph: the graph lacks 'nodes'"),
        (lambda facts: facts | {"input_shapes": 3}, "is damaged"),
    ],
)
def test_a_changed_plan_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message):
        fs.Plan.load(saved)


def test_another_model_in_the_file_is_refused(saved):
    rewrite(saved, model=classifier().to_proto().SerializeToString())
    with pytest.raises(ModelError, match="is damaged"):
        fs.Plan.load(saved)
    rewrite(saved, model=b"\xff\xff")
    with pytest.raises(ModelError, match="is damaged"):
        fs.Plan.load(saved)


def test_a_save_that_fails_leaves_nothing_and_keeps_what_was_there(plan, saved, tmp_path):
    with pytest.raises(ModelError, match="cannot be written"):
        plan.save(tmp_path / "no" / "such" / "folder")
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(ModelError, match="cannot be written"):
        plan.save(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "net.plan"]
    assert fs.Plan.load(saved) == plan
