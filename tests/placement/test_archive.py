"""Plans in files."""

import dataclasses
import json
import zipfile

import pytest

import fpgasim as fs
from fpgasim.errors import InputError, ModelError

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
        weights = archive.read("weights.bin")
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("plan.json", json.dumps(change(facts)))
        archive.writestr("model.onnx", old if model is None else model)
        archive.writestr("weights.bin", weights)


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


def test_what_is_no_path_is_refused(plan):
    for door in (plan.save, fs.Plan.load):
        with pytest.raises(InputError, match=r"path=3 is no path; a str or a pathlib\.Path would do"):
            door(3)


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


def within(*path, **changes):
    """Changes fields of the object at `path` in a plan's facts."""

    def change(facts):
        place = facts
        for key in path:
            place = place[key]
        place.update(changes)
        return facts

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts | {"version": 1}, "is of version 1; this fpgasim reads version 2"),
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
        (lambda facts: facts | {"optimized": "yes"}, "optimized='yes' must be true or false"),
        (lambda facts: facts | {"objective_name": "foo"}, "no objective 'foo'; there are latency, coverage"),
        (lambda facts: facts | {"algorithm": "foo"}, "no algorithm of a plan 'foo'; there are mincut, frontier, milp"),
        (lambda facts: facts | {"note": 3}, "note: 3 is no text"),
        (lambda facts: facts | {"lower_bound_s": 1e9}, r"lower_bound_s=1000000000.0 is no bound below the \S+ s of"),
        (lambda facts: facts | {"lower_bound_s": "abc"}, "lower_bound_s='abc' is no bound"),
        (lambda facts: facts | {"lower_bound_s": True}, "lower_bound_s=True is no bound"),
        (lambda facts: facts | {"lower_bound_s": float("nan")}, "lower_bound_s=nan is no bound"),
        (lambda facts: facts | {"lower_bound_s": float("-inf")}, "lower_bound_s=-inf is no bound"),
        (within("numbers", accumulator="foo"), "no accumulator 'foo'; there are fp32"),
        (within("numbers", order="zz"), "no order 'zz'; there are khwc"),
        (within("numbers", pointwise="foo"), "no pointwise type 'foo'; there are fp16"),
        (within("numbers", "format", block=7), r"has blocks of 7; device 'bw_a10' computes in blocks of 128"),
        (within("numbers", "format", block=7, follows_device=False), "blocks of 7, which do not divide the native dim"),
        (within("numbers", "format", mantissa_bits=5.0), "mantissa_bits=5.0 must be a whole number"),
        (within("device", native_dim=64), "has blocks of 128; device 'bw_a10' computes in blocks of 64"),
        (within("device", lanes=8), "cost_graph.nodes is not what this fpgasim computes for the model on device 'bw_a"),
        (within("decisions", 0, cpu_s=-1), "the decision about node 'conv0' says -1 s on the CPU"),
        (within("decisions", 0, fpga_s=None), "the decision about node 'conv0' says"),
        (within("decisions", 0, code="xx"), "no reason code 'xx'; there are unsupported-op"),
        (within("decisions", 0, message=[]), r"conv0: \[\] is no text"),
        (within("decisions", 0, device="gpu"), "node 'conv0' has side 'gpu'"),
        (
            lambda facts: within("cost_graph", tensors=[])(facts | {"lower_bound_s": 0}),
            "cost_graph.tensors is not what",
        ),
        (within("cost_graph", tensors=[]), "is no bound below"),
        (within("cost_graph", launch=10**400), "is damaged: cost graph: the graph: launch=10{59}… must be"),
        (within("cost_graph", pairs=[]), "cost_graph.pairs is not what this fpgasim computes"),
        (within("cost_graph", launch=0), "is no bound below"),
    ],
)
def test_a_changed_plan_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message) as refusal:
        fs.Plan.load(saved)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("fmt", ["msfp16", "fp32"])
def test_a_plan_for_another_device_is_refused_although_its_format_fits(fmt, tmp_path):
    fs.partition(classifier(), "bw_a10", fmt).save(tmp_path / "plan")
    rewrite(tmp_path / "plan", within("device", native_dim=64))
    with pytest.raises(ModelError, match=r"cost_graph\.nodes is not what this fpgasim computes"):
        fs.Plan.load(tmp_path / "plan")


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
