"""Plans for several FPGAs: through the public door."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import fpgasim as fs
from fpgasim.cli import main
from fpgasim.errors import InputError, ModelError, PlacementError, UnknownNameError
from fpgasim.placement import objective

from .nets import Net, classifier
from .split_nets import many_ways

#: A chip of 12 native tiles: one convolution of 64 channels, and not two.
SMALL = dataclasses.replace(fs.npu.get_device("bw_a10"), name="small", native_dim=64, lanes=16, tiles=2, mrf_tiles=12)


def chain(layers=6, channels=64, size=16):
    """Residual blocks in a row, each of 9 native tiles, then pooling and an operator that the engine lacks."""
    net = Net(("N", channels, size, size))
    x = "x"
    for _ in range(layers):
        y = net.op("Relu", net.conv(x, channels, channels))
        x = net.op("Add", y, x)
    return net.graph(net.op("LRN", net.op("GlobalAveragePool", x), size=3))


def planned(graph=None, device=SMALL, **options):
    asked = {"devices": "auto", "objective": "coverage", **options}
    return fs.partition(chain() if graph is None else graph, device, "bw_1s5e5m", **asked)


def feeds(graph, batch=1):
    rng = np.random.default_rng(1)
    return {t.name: rng.normal(size=(batch, *t.shape[1:])).astype(np.float32) for t in graph.inputs}


def test_each_device_holds_its_weights_and_the_stages_are_all_that_is_on_the_fpga():
    plan = planned()
    room = fs.npu.timing.on_chip_bytes(plan.device, plan.numbers)
    assert len(plan.stages) == 6
    assert {name for names in plan.stages for name in names} == {n for n, s in plan.assignment.items() if s == "fpga"}
    for names in plan.stages:
        assert 0 < sum(plan.cost_graph.node_of[name].weight for name in names) <= room
    assert plan.pinned == {d.node for d in plan.decisions if d.node.startswith("conv")}
    assert [segment.stage for segment in plan.segments if segment.kind == "fpga"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("split_for", ["latency", "throughput"])
@pytest.mark.parametrize("devices", [6, 7])
def test_a_session_of_several_devices_gives_the_bits_of_one(devices, split_for):
    graph = chain()
    one = fs.partition(graph, SMALL, "bw_1s5e5m", objective="coverage")
    several = planned(graph, devices=devices, split_for=split_for)
    given = feeds(graph, 2)
    made = [name for node in graph.nodes for name in node.outputs]
    expected, got = fs.compile(one).run(given, made), fs.compile(several).run(given, made)
    for name in made:
        np.testing.assert_array_equal(expected[name], got[name], strict=True)


@pytest.mark.parametrize("name", many_ways())
def test_networks_with_cpu_pieces_between_give_the_bits_of_one_device(name):
    graph = many_ways()[name]
    several = planned(graph, weights="auto")
    assert len(several.stages) > 1
    one = fs.partition(graph, SMALL, "bw_1s5e5m", objective="coverage")
    given = feeds(graph)
    expected, got = fs.compile(one).run(given), fs.compile(several).run(given)
    for output, values in expected.items():
        np.testing.assert_array_equal(values, got[output], strict=True)
    assert several.objective_s == pytest.approx(several.split.latency_s)


def test_a_plan_of_several_devices_comes_back_from_its_file(tmp_path):
    plan = planned(hop_s=3e-6, link_bytes_per_s=1e9, split_for="throughput")
    plan.save(tmp_path / "plan")
    again = fs.Plan.load(tmp_path / "plan")
    assert again == plan
    assert again.stages == plan.stages
    assert (again.options.devices, again.options.hop_s, again.options.split_for) == ("auto", 3e-6, "throughput")
    assert again.replan({"x": (3, 64, 16, 16)}, keep_sides=True).stages == plan.stages
    assert again.replan({"x": (0, 64, 16, 16)}).stages == ()
    assert planned() != plan
    np.testing.assert_array_equal(
        *(next(iter(fs.compile(p).run(feeds(p.source_graph, 3)).values())) for p in (plan, again))
    )


def test_stages_that_are_none_are_refused():
    plan = planned()
    first, second, *rest = plan.stages
    with pytest.raises(PlacementError, match="bytes of weights on device 1, which keeps"):
        dataclasses.replace(plan, stages=(first + second, *rest))
    with pytest.raises(PlacementError, match="back to"):
        dataclasses.replace(plan, stages=(second, first, *rest))
    with pytest.raises(PlacementError, match="each of them once"):
        dataclasses.replace(plan, stages=(second, *rest))
    with pytest.raises(PlacementError, match="6 devices, more than devices=2"):
        dataclasses.replace(plan, options=dataclasses.replace(plan.options, devices=2))
    with pytest.raises(PlacementError, match="stages of several devices"):
        dataclasses.replace(plan, options=dataclasses.replace(plan.options, devices=1, capacity=1e9))


def test_a_network_that_fits_on_one_device_costs_what_one_that_keeps_its_weights_does():
    graph = classifier(channels=32)
    one = fs.partition(graph, "bw_s10", "bw_1s5e5m", weights="pinned", objective="coverage")
    several = fs.partition(graph, "bw_s10", "bw_1s5e5m", devices=4, objective="coverage")
    assert len(several.stages) == 1
    assert several.objective_s == pytest.approx(one.objective_s, rel=1e-12)
    assert several.timing().total_ms == pytest.approx(one.timing().total_ms, rel=1e-12)


def test_the_split_adds_hops_and_launches_to_what_one_device_would_take():
    plan = planned()
    hops = [t for t in plan.timing().transfers if t.direction == "hop"]
    size = fs.npu.timing.wire_bytes((1, 16, 16, 64), plan.device, "fp16")
    assert {hop.payload_bytes for hop in hops} == {size}
    assert {hop.seconds for hop in hops} == {10e-6 + size / 5e9}
    whole = objective(plan.priced, plan.assignment)
    assert plan.objective_s >= whole + 5 * plan.device.launch_s + sum(hop.seconds for hop in hops) - 1e-12
    slow = planned(hop_s=1e-3, link_bytes_per_s=1e6)
    assert slow.objective_s > plan.objective_s + 5e-3


def test_the_event_model_and_the_objective_agree_on_stages_that_are_whole_segments():
    plan = planned()
    timing = plan.timing()
    assert [stage.seconds for stage in timing.stages] == pytest.approx(plan.split.stage_s)
    assert timing.total_ms == pytest.approx(plan.objective_s * 1e3)
    assert timing.interval_ms == pytest.approx(plan.split.interval_s * 1e3)
    assert timing.batches_per_s == pytest.approx(1 / plan.split.interval_s)
    assert timing.total_ms > timing.interval_ms
    assert timing == fs.compile(plan).timing()


def test_throughput_is_never_better_for_latency_nor_latency_for_throughput():
    device = dataclasses.replace(SMALL, mrf_tiles=30, cpu_call_s=0.0)
    for devices in (2, 3, 6):
        quick, often = (planned(None, device, devices=devices, split_for=aim) for aim in ("latency", "throughput"))
        assert quick.split.latency_s <= often.split.latency_s
        assert often.split.interval_s <= quick.split.interval_s
    assert often.split.interval_s < quick.split.interval_s
    assert (len(quick.stages), len(often.stages)) == (2, 6)


def test_too_few_devices_are_refused_with_the_number_that_would_do():
    with pytest.raises(PlacementError, match=r"devices=3 are too few: these weights need 6.*devices=6 or") as caught:
        planned(devices=3)
    assert "\n" not in str(caught.value)
    assert len(planned(devices=6).stages) == 6


def test_a_layer_that_no_device_holds_is_named_and_streamed_if_asked():
    net = Net(("N", 64, 8, 8))
    x = net.op("Relu", net.conv("x", 64, 64))
    x = net.op("Relu", net.conv(x, 64, 256), outputs=["wide"])
    graph = net.graph(net.conv(x, 256, 64))
    with pytest.raises(PlacementError, match=r"node 'conv2', .* bytes, do not fit on one device, which keeps"):
        planned(graph)
    plan = planned(graph, weights="auto")
    assert plan.pinned == {"conv0"}
    assert "conv2" not in plan.pinned
    assert plan.assignment["conv2"] == "fpga"
    left = planned(graph, force={"conv2": "cpu", "conv4": "cpu"})
    assert left.assignment["conv2"] == "cpu"
    assert plan.timing().segments[-1].timing.load_cycles > 0


def test_what_loses_to_the_cpu_is_left_there_and_said():
    plan = planned(objective="latency", hop_s=1.0)
    assert plan.stages == ()
    assert set(plan.assignment.values()) == {"cpu"}
    assert "everything is left on the CPU: 6 devices would take" in plan.note
    assert plan.objective_s == plan.all_cpu_s
    assert "split over" not in plan.explain()
    assert planned(hop_s=1.0).note.startswith("the CPU alone would take")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"devices": 0}, InputError, "devices=0 must be a whole number from 1 up"),
        ({"devices": True}, InputError, "devices=True must be"),
        ({"devices": "all"}, InputError, "devices='all' must be"),
        ({"devices": 2, "weights": "streamed"}, InputError, "several devices keep weights"),
        ({"hop_s": -1}, InputError, "hop_s=-1 must be a finite number from 0 up"),
        ({"link_bytes_per_s": 0}, InputError, "link_bytes_per_s=0 must be a finite number from above 0"),
        ({"split_for": "fun"}, UnknownNameError, "fun"),
        ({"capacity": 1e12}, InputError, "do not stay on 'small'"),
        ({"capacity": 1e3}, PlacementError, "do not fit on one device, which keeps 1,000"),
    ],
)
def test_what_is_no_demand_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        planned(**options)


def test_the_explanation_says_which_device_holds_a_node_and_why():
    plan = planned()
    said = plan.explanation()
    pipeline = said.pipeline
    assert pipeline.needed == 6
    assert [stage.nodes for stage in pipeline.stages] == list(plan.stages)
    assert all(stage.reason.startswith("capacity: conv") for stage in pipeline.stages[1:])
    assert {node.name: node.on_device for node in said.nodes} == {
        name: plan.stage_of.get(name, -1) + 1 for name in plan.assignment
    }
    total = sum(step.seconds for step in said.steps) + sum(t.seconds for t in said.transfers)
    assert total == pytest.approx(said.objective_s)
    assert pipeline.latency_s == pytest.approx(sum(s.seconds for s in pipeline.stages) + pipeline.host_s)
    assert pipeline.batches_per_s == pytest.approx(1 / plan.split.interval_s)
    assert said.greedy.seconds >= said.objective_s * (1 - 1e-9)
    assert json.loads(json.dumps(said.to_dict()))["pipeline"]["stages"][1]["device"] == 2
    text = plan.explain()
    assert "split over 6 devices of small, for latency" in text
    assert "by dynamic programming" in text


def test_borders_one_node_away_cost_what_the_explanation_says():
    plan = planned(devices=8, split_for="throughput")
    found = 0
    for i, stage in enumerate(plan.explanation(counterfactuals=False).pipeline.stages):
        for by, more in ((-1, stage.earlier_s), (1, stage.later_s)):
            if more is not None:
                names = plan.stages[i - 1] + plan.stages[i]
                at = len(plan.stages[i - 1]) + by
                stages = (*plan.stages[: i - 1], names[:at], names[at:], *plan.stages[i + 1 :])
                moved = dataclasses.replace(plan, stages=stages, lower_bound_s=0.0)
                assert moved.objective_s - plan.objective_s == pytest.approx(more, abs=1e-12)
                found += 1
    assert found


def test_other_sides_are_at_least_what_is_possible():
    plan = planned(objective="latency")
    for node in plan.explanation().nodes:
        if node.other_side.objective is not None:
            assert node.other_side.objective >= node.other_side.lower_bound
            assert not node.other_side.exact


def test_an_export_has_a_function_for_each_device(tmp_path):
    plan = planned()
    plan.export(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert sorted(function.name for function in model.functions) == [f"fpga{i}" for i in range(6)]
    assert fs.load(tmp_path / "net.onnx").fingerprint() == plan.graph.fingerprint()


def test_the_picture_has_a_box_for_each_device():
    dot = planned().to_dot()
    assert all(f"FPGA device {i}:" in dot for i in range(1, 7))
    assert all(rf"\lcapacity: conv{3 * i} (" in dot and f"does not fit on device {i}" in dot for i in range(1, 6))


def test_the_commands_show_stages_latency_and_throughput_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain().save("net.onnx")
    (tmp_path / "small.yaml").write_text("base: bw_a10\nname: small\nnative_dim: 64\ntiles: 2\nmrf_tiles: 12\n")
    common = ["net.onnx", "--device", "small.yaml", "--objective", "coverage"]

    def call(*arguments):
        result = CliRunner().invoke(main, [*arguments])
        assert result.exception is None, result.output
        return result.output

    text = call("partition", *common, "--devices", "auto", "--save", "net.fpgaplan", "--no-counterfactuals")
    assert "split over 6 devices" in text
    for command in (["simulate", "net.fpgaplan"], ["simulate", *common, "--devices", "6"], ["report", "net.fpgaplan"]):
        text = call(*command)
        assert "device 6" in text
        assert "batches/s" in text
        assert "latency" in text
    values = json.loads(call("simulate", "net.fpgaplan", "--json"))["timing"]
    assert len(values["stages"]) == 6
    assert values["batches_per_s"] == pytest.approx(1e3 / values["interval_ms"])
    call("report", "net.fpgaplan", "--trace", "trace.json", "--csv", "layers.csv")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == set(range(1, 7))
    end = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X")
    assert end == pytest.approx(values["total_ms"] * 1e3)
    result = CliRunner().invoke(main, ["partition", *common, "--devices", "2"])
    assert result.exit_code
    assert "devices=2 are too few: these weights need 6" in result.output
    assert CliRunner().invoke(main, ["partition", *common, "--devices", "0"]).exit_code == 2


def test_stages_in_a_file_that_fit_no_device_are_damage(tmp_path):
    import zipfile

    plan = planned()
    plan.save(tmp_path / "plan")
    with zipfile.ZipFile(tmp_path / "plan") as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    facts = json.loads(parts["plan.json"])
    facts["stages"] = [[name for names in facts["stages"] for name in names]]
    with zipfile.ZipFile(tmp_path / "plan", "w") as archive:
        for name, data in (parts | {"plan.json": json.dumps(facts).encode()}).items():
            archive.writestr(name, data)
    with pytest.raises(ModelError, match=r"is damaged: .*on device 1, which keeps"):
        fs.Plan.load(tmp_path / "plan")
