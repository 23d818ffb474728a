"""The session as its user sees it."""

import dataclasses
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest

import fpgasim as fs
from fpgasim.compiler import lower, segment_layers
from fpgasim.errors import InputError, ModelError, UnknownNameError
from fpgasim.kernels import backend
from fpgasim.ops import num_threads
from fpgasim.placement import Decision, Plan
from fpgasim.runtime import Session
from fpgasim.runtime.fpga import FpgaRunner

from .evaluator import evaluate, same_bits
from .nets import NETS, Net, feed, tiny_device


def plan_of(model: onnx.ModelProto, fmt: str = "msfp16", **options) -> Plan:
    return fs.partition(fs.load(model), tiny_device(), fmt, objective="coverage", **options)


def moved_to_cpu(plan: Plan, names: set[str]) -> Plan:
    decisions = [
        Decision(d.node, "cpu" if d.node in names else d.device, d.code, d.message, d.cpu_s, d.fpga_s)
        for d in plan.decisions
    ]
    return dataclasses.replace(plan, decisions=tuple(decisions))


def on_onnx_runtime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def feed_for(plan: Plan, seed: int = 0) -> np.ndarray:
    return feed(plan.graph.inputs[0].shape, seed)


def interrupted() -> onnx.ModelProto:
    """Two operators that the engine does not have cut the network into several segments."""
    net = Net(8)
    x = net.op("LeakyRelu", net.conv("x", 3, 16, 3, pads=[1, 1, 1, 1]), output="leaky")
    y = net.op("Relu", net.conv(x, 16, 24), output="branch")
    z = net.op("LRN", y, size=3, output="normalized")
    x = net.op("Add", net.conv(z, 24, 16), x, output="joined")
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.op("Softmax", net.dense(x, 16, 5, "logits"), output="probabilities")
    return net.model(("N", 3, 6, 6), "probabilities")


@pytest.mark.parametrize("net", NETS)
def test_fp32_emulation_is_onnx_runtime_within_1e_5_of_the_largest_output(net):
    model = NETS[net]()
    plan = plan_of(model, "fp32")
    x = feed_for(plan)
    expected = on_onnx_runtime(model, x)
    got = next(iter(fs.compile(plan).run({"x": x}).values()))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


#: Bits of precision of an element, as docs/numbers.md counts them for its bounds.
PRECISION = {"msfp16": 7, "bw_1s5e5m": 5, "mxint8": 7, "mxfp8_e4m3": 4, "msfp13": 4, "mxfp4_e2m1": 2}


@pytest.mark.parametrize("fmt", PRECISION)
@pytest.mark.parametrize("net", ["residual", "depthwise", "dense", "vgg", "grouped"])
def test_a_network_stays_within_the_bound_that_the_documentation_states(net, fmt):
    model = NETS[net]()
    plan = plan_of(model, fmt)
    x = feed_for(plan)
    name = plan.graph.outputs[-1].name
    expected = fs.compile(plan_of(model, "fp32")).run({"x": x})[name]
    error = np.linalg.norm(fs.compile(plan).run({"x": x})[name] - expected)
    layers = sum(plan.graph.macs(node) > 0 for node in plan.graph.nodes)
    assert 0 < error <= 2 * layers**0.5 * 2.0 ** -PRECISION[fmt] * np.linalg.norm(expected)


@pytest.mark.parametrize("fmt", PRECISION)
@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_a_layer_never_leaves_the_bound_that_the_documentation_states(fmt, spread):
    rng = np.random.default_rng(3)
    scale = 2.0 ** rng.uniform(-spread, spread, (40, 1, 1))
    net = Net(12)
    net.op(
        "Conv",
        "x",
        net.constant(weights := (rng.standard_normal((8, 40, 1, 1)) / scale).astype(np.float32)),
        output="result",
    )
    plan = plan_of(net.model(("N", 40, 5, 5), "result"), fmt, pointwise="fp32")
    x = (rng.standard_normal((1, 40, 5, 5)) * scale).astype(np.float32)
    got = fs.compile(plan).run({"x": x})["result"]
    exact = np.einsum("nchw,oc->nohw", x.astype(np.float64), weights[:, :, 0, 0].astype(np.float64))
    delta, block = 2.0 ** (1 - PRECISION[fmt]), plan.numbers.format.block
    bound = np.zeros_like(exact)
    for first in range(0, 40, block):
        part = slice(first, first + block)
        largest_x = np.maximum(np.abs(x[:, part]).max(axis=1), 2.0**-15)
        largest_w = np.maximum(np.abs(weights[:, part, 0, 0]).max(axis=1), 2.0**-15)
        bound += block * (2 * delta + delta**2) * largest_x[:, None] * largest_w[:, None, None]
    assert (np.abs(got - exact) <= bound).all()


@pytest.mark.parametrize("net", NETS)
def test_fusing_changes_no_bit(net):
    plan = plan_of(NETS[net]())
    graph, nodes = plan.graph, plan.segments[0].nodes
    program = lower(graph, nodes, plan.device, plan.numbers)
    single = tuple(segment_layers(graph, [name], plan.device, plan.numbers)[0] for name in nodes)
    assert len(single) == len(nodes) >= len(program.layers)
    x = feed_for(plan)
    names = [name for layer in single for name in layer.tensors]
    fused, unfused = (
        FpgaRunner(p, backend(), 1).run({"x": x}, names, Counter())
        for p in (program, dataclasses.replace(program, layers=single))
    )
    assert all(same_bits(fused[name], unfused[name]) for name in names)


def test_several_segments_give_the_bits_of_the_plan_evaluated_node_by_node():
    plan = plan_of(interrupted())
    assert [segment.kind for segment in plan.segments] == ["fpga", "cpu", "fpga", "cpu", "fpga", "cpu"]
    x = feed_for(plan)
    expected = evaluate(plan, {"x": x})
    got = fs.compile(plan).run({"x": x}, list(expected))
    assert list(got) == list(expected)
    assert all(same_bits(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_any_split_gives_the_bits_of_that_split_evaluated_node_by_node(net, seed):
    plan = plan_of(NETS[net]())
    rng = np.random.default_rng(seed)
    plan = moved_to_cpu(plan, {node.name for node in plan.graph.nodes if rng.random() < 0.4})
    x = feed_for(plan, seed)
    expected = evaluate(plan, {"x": x})
    names = [name for segment in plan.segments for name in segment.outputs]
    got = fs.compile(plan).run({"x": x}, names)
    assert all(same_bits(got[name], expected[name]) for name in names)


def test_a_plan_without_the_fpga_is_onnx_runtime():
    model = interrupted()
    plan = plan_of(model)
    plan = moved_to_cpu(plan, {node.name for node in plan.graph.nodes})
    x = feed_for(plan)
    np.testing.assert_allclose(fs.compile(plan).run({"x": x})["probabilities"], on_onnx_runtime(model, x), rtol=1e-6)


def test_three_images_are_planned_once_and_give_the_bits_of_each_alone(monkeypatch):
    session = fs.compile(plan_of(interrupted()))
    calls = []
    replan = Plan.replan
    monkeypatch.setattr(Plan, "replan", lambda plan, shapes: calls.append(shapes) or replan(plan, shapes))
    x = feed((3, 3, 6, 6))
    names = ["probabilities", "logits", "normalized", "joined"]
    together = session.run({"x": x}, names)
    again = session.run({"x": x}, names)
    alone = [session.run({"x": x[i : i + 1]}, names) for i in range(3)]
    assert calls == [{"x": (3, 3, 6, 6)}]
    for name in ("joined", "logits"):
        assert same_bits(together[name], np.concatenate([one[name] for one in alone]))
        assert same_bits(together[name], again[name])


def test_a_session_keeps_a_limited_number_of_other_shapes():
    session = fs.compile(plan_of(NETS["vgg"]()))
    for batch in range(2, 14):
        assert session.run({"x": feed((batch, 3, 8, 8))})["logits"].shape == (batch, 7)
    assert len(session._other_shapes) == 8
    packed = session._steps[0].runner.segment.constants
    assert all(
        step.runner.segment.constants[name] is packed[name]
        for _, steps in session._other_shapes.values()
        for step in steps
        for name in packed
    )


def paying_in_batches() -> onnx.ModelProto:
    """On the CPU for one image, its convolution on the FPGA for many."""
    net = Net(11)
    net.op("Softmax", net.conv("x", 64, 64, 3, pads=[1, 1, 1, 1], output="y"), output="result")
    return net.model(("N", 64, 7, 7), "result")


def test_each_batch_is_computed_where_a_plan_made_for_it_has_its_nodes_and_packs_weights_once():
    graph = fs.load(paying_in_batches())
    session = fs.compile(fs.partition(graph, "bw_a10", "bw_1s5e5m"))
    assert session.plan.fpga_mac_share == 0
    for batch in (64, 65):
        x = feed((batch, 64, 7, 7))
        fresh = fs.partition(graph, "bw_a10", "bw_1s5e5m", dims={"N": batch})
        assert fresh.fpga_mac_share == 1
        assert same_bits(session.run({"x": x})["result"], fs.compile(fresh).run({"x": x})["result"])
        assert session.timing({"x": x.shape}) == fresh.timing()
    assert session.timing() == session.plan.timing()
    first, second = (
        step.runner.segment.constants
        for _, steps in session._other_shapes.values()
        for step in steps
        if isinstance(step.runner, FpgaRunner)
    )
    assert first
    assert all(first[name] is second[name] for name in first)


def test_runs_of_known_shapes_do_not_wait_for_a_plan_that_is_being_made(monkeypatch):
    session = fs.compile(plan_of(NETS["vgg"]()))
    session.run({"x": feed((2, 3, 8, 8))})
    begun, go_on = threading.Event(), threading.Event()
    replan = Plan.replan

    def slow(plan: Plan, shapes: dict[str, tuple[int, ...]]) -> Plan:
        begun.set()
        assert go_on.wait(30)
        return replan(plan, shapes)

    monkeypatch.setattr(Plan, "replan", slow)
    with ThreadPoolExecutor(3) as pool:
        third = pool.submit(session.run, {"x": feed((3, 3, 8, 8))})
        try:
            assert begun.wait(30)
            for batch in (1, 2):
                others = pool.submit(session.run, {"x": feed((batch, 3, 8, 8))})
                assert others.result(30)["logits"].shape == (batch, 7)
            assert not third.done()
        finally:
            go_on.set()
        assert third.result(30)["logits"].shape == (3, 7)


def test_eight_threads_share_a_session_and_its_shapes():
    session = fs.compile(plan_of(interrupted()))
    inputs = [feed((1 + i % 3, 3, 6, 6), seed=i) for i in range(24)]
    expected = [session.run({"x": x})["probabilities"] for x in inputs]
    fresh = fs.compile(session.plan)
    start = threading.Barrier(8)

    def work(first: int) -> list[np.ndarray]:
        start.wait()
        return [fresh.run({"x": x})["probabilities"] for x in inputs[first::8]]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for first, got in enumerate(results):
        assert all(same_bits(a, b) for a, b in zip(got, expected[first::8], strict=True))
    assert fresh.report().runs == 24


def test_nan_in_the_input_reaches_what_depends_on_it_and_no_other_image():
    session = fs.compile(plan_of(NETS["residual"](), dims={"N": 2}))
    x = feed((2, 3, 13, 13))
    clean = session.run({"x": x})["logits"]
    x[1, 0, 6, 6] = np.nan
    got = session.run({"x": x})["logits"]
    assert same_bits(got[0], clean[0])
    assert np.isnan(got[1]).all()


def saturating() -> onnx.ModelProto:
    net = Net(9)
    y = net.op("Conv", "x", net.random(8, 16, 1, 1, scale=1e4), output="y")
    net.op("Mul", y, y, output="result")
    return net.model(("N", 16, 4, 4), "result")


def test_fp16_saturations_are_counted_by_layer_over_all_runs():
    session = fs.compile(plan_of(saturating()))
    wide = fs.compile(plan_of(saturating(), pointwise="fp32"))
    x = feed((1, 16, 4, 4))
    x[0, 0, 0, :2] = 7e4, -65520
    # The same sums, which fp32 does not limit, of the input as fp16 has it.
    y = wide.run({"x": np.clip(x, -65504, 65504).astype(np.float16)}, ["y"])["y"]
    limited = session.run({"x": x}, ["y", "result"])
    first, second = (int(np.count_nonzero(np.abs(v) >= 65520)) for v in (y, limited["y"] ** 2))
    assert 0 < first < second <= y.size
    assert np.abs(limited["result"]).max() == 65504
    assert session.report() == fs.runtime.Report(1, {"n0": first, "n1": second, "x": 2})
    session.run({"x": x})
    assert session.report() == fs.runtime.Report(2, {"n0": 2 * first, "n1": 2 * second, "x": 4})
    assert wide.report().saturations == {}


def test_bf16_overflows_to_infinity_and_counts_nothing():
    session = fs.compile(plan_of(saturating(), pointwise="bf16"))
    assert np.isinf(session.run({"x": feed((1, 16, 4, 4)) * 1e36})["result"]).any()
    assert session.report().saturations == {}


def test_intermediate_tensors_come_by_name_in_the_order_asked_for():
    plan = plan_of(interrupted())
    session = fs.compile(plan)
    x = feed_for(plan)
    names = ["normalized", "x", "branch", "probabilities", "c0", "branch"]
    got = session.run({"x": x}, names)
    assert list(got) == ["normalized", "x", "branch", "probabilities", "c0"]
    assert same_bits(got["probabilities"], session.run({"x": x})["probabilities"])
    assert same_bits(got["x"], x)
    assert got["x"] is not x
    assert np.array_equal(got["c0"], plan.graph.constant("c0"))
    got["c0"][:] = 0
    assert np.array_equal(session.run({"x": x}, ["c0"])["c0"], plan.graph.constant("c0"))


def test_no_outputs_asked_for_is_no_outputs():
    session = fs.compile(plan_of(NETS["vgg"]()))
    assert session.run({"x": feed((1, 3, 8, 8))}, []) == {}


def test_results_belong_to_the_caller():
    session = fs.compile(plan_of(interrupted()))
    x = feed((1, 3, 6, 6))
    first = session.run({"x": x}, ["branch", "probabilities"])
    kept = {name: value.copy() for name, value in first.items()}
    for value in first.values():
        value[...] = 0
    second = session.run({"x": x}, ["branch", "probabilities"])
    assert all(same_bits(second[name], kept[name]) for name in kept)


BAD_FEEDS = [
    ({}, "input 'x' is not fed; float32 of shape (N, 3, 13, 13) would do"),
    ({"X": 0}, "no input 'X'; the inputs are 'x'"),
    ({"xx": 0, "x": 0}, "no input 'xx'; did you mean 'x'? the inputs are 'x'"),
    (
        {"x": np.zeros((3, 13, 13), np.float32)},
        "input 'x' has shape (3, 13, 13); float32 of shape (N, 3, 13, 13) would do; "
        "a single one needs an axis for the batch",
    ),
    (
        {"x": np.zeros((1, 3, 13, 14), np.float32)},
        "input 'x' has shape (1, 3, 13, 14); float32 of shape (N, 3, 13, 13) would do",
    ),
    (
        {"x": np.zeros((1, 3, 13, 13), np.int64)},
        "input 'x' has dtype int64; float32 of shape (N, 3, 13, 13) would do",
    ),
    ({"x": np.zeros((1, 3, 13, 13), bool)}, "input 'x' has dtype bool; float32 of shape (N, 3, 13, 13) would do"),
    ({"x": "a picture"}, "input 'x' has dtype <U9; float32 of shape (N, 3, 13, 13) would do"),
    ([1], "feeds is a list; a mapping from input name to array would do"),
]


@pytest.fixture(scope="module")
def session() -> Session:
    return fs.compile(plan_of(NETS["residual"]()))


@pytest.mark.parametrize(("feeds", "message"), BAD_FEEDS, ids=[message[:40] for _, message in BAD_FEEDS])
def test_a_wrong_feed_is_refused_with_what_would_do(session, feeds, message):
    with pytest.raises(InputError) as error:
        session.run(feeds)
    assert str(error.value) == message


def test_ragged_lists_are_refused(session):
    with pytest.raises(InputError, match="input 'x' is no array"):
        session.run({"x": [[1.0, 2.0], [3.0]]})


def test_other_precisions_become_float32(session):
    x = feed((1, 3, 13, 13)).astype(np.float16)
    expected = session.run({"x": x.astype(np.float32)})["logits"]
    for same in (x, x.astype(np.float64), x.tolist()):
        assert same_bits(session.run({"x": same})["logits"], expected)


def test_an_unknown_output_is_refused_with_names_that_are_close(session):
    with pytest.raises(InputError, match=r"no tensor 'logit' in graph 'net'; close to it are 'logits'"):
        session.run({"x": feed((1, 3, 13, 13))}, ["logit"])
    with pytest.raises(InputError, match=r"outputs='logits' must be a list of tensor names"):
        session.run({"x": feed((1, 3, 13, 13))}, "logits")


def integer_inputs() -> onnx.ModelProto:
    net = Net(10)
    y = net.op("Relu", net.conv("x", 3, 16), output="y")
    net.op("Gather", y, "index", axis=1, output="result")
    model = net.model(("N", 3, 4, 4), "result")
    model.graph.input.append(onnx.helper.make_tensor_value_info("index", onnx.TensorProto.INT32, ["K"]))
    return model


def test_whole_numbers_of_another_size_are_taken_if_they_fit():
    session = fs.compile(plan_of(integer_inputs()))
    feeds = {"x": feed((1, 3, 4, 4)), "index": [3, 1]}
    got = session.run(feeds, ["y", "result"])
    assert same_bits(got["result"], got["y"][:, [3, 1]])
    with pytest.raises(InputError, match=r"input 'index' has dtype int64; int32 of shape \(K\) would do"):
        session.run({**feeds, "index": [1 << 40]})
    with pytest.raises(InputError, match=r"input 'index' has dtype float64; int32 of shape \(K\) would do"):
        session.run({**feeds, "index": [1.0]})


def test_a_cpu_piece_that_fails_names_its_nodes():
    session = fs.compile(plan_of(integer_inputs()))
    with pytest.raises(ModelError, match=r"the CPU piece of node 'n1|'n2' failed on ONNX Runtime: .*idx=99"):
        session.run({"x": feed((1, 3, 4, 4)), "index": [99]})


def test_the_inputs_and_outputs_are_those_of_the_model(session):
    assert [(t.name, t.dtype, t.shape) for t in session.inputs] == [("x", np.float32, ("N", 3, 13, 13))]
    assert [(t.name, t.shape) for t in session.outputs] == [("logits", ("N", 10))]


def test_a_saved_session_gives_the_same_bits(session, tmp_path):
    session.save(tmp_path / "net.fpgasim")
    loaded = Session.load(tmp_path / "net.fpgasim")
    assert loaded.plan == session.plan
    for batch in (1, 2):
        x = feed((batch, 3, 13, 13))
        assert same_bits(loaded.run({"x": x})["logits"], session.run({"x": x})["logits"])


def test_compile_takes_plans_and_known_backends(session):
    with pytest.raises(InputError, match=r"compile takes a Plan, as fpgasim.partition returns it; got Session"):
        fs.compile(session)
    with pytest.raises(UnknownNameError, match="no kernel backend 'tpu'; there are reference"):
        fs.compile(session.plan, "tpu")
    assert fs.compile(session.plan, "reference").kernels is backend("reference")


def test_the_thread_count_of_the_environment_reaches_both_sides(monkeypatch):
    monkeypatch.setenv("FPGASIM_NUM_THREADS", "3")
    session = fs.compile(plan_of(interrupted()))
    assert num_threads() == session._threads == 3
    ((cpu, _),) = session._steps[1].runner._sessions.values()
    options = cpu.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_where_every_step_rounds_the_results_at_the_limit_are_counted():
    net = Net(13)
    net.op("Conv", "x", net.random(16, 1, 3, 3, scale=3e4), group=16, output="result")
    session = fs.compile(plan_of(net.model(("N", 16, 5, 5), "result")))
    result = session.run({"x": feed((1, 16, 5, 5))})["result"]
    at_limit = int(np.count_nonzero(np.abs(result) == 65504))
    assert 0 < at_limit < result.size
    assert session.report().saturations == {"n0": at_limit}


@pytest.mark.parametrize("kernels", [[], 3, object()])
def test_what_is_no_kernel_backend_is_refused(kernels):
    plan = plan_of(NETS["vgg"]())
    with pytest.raises(InputError, match=r"is no kernel backend; the name of one would do"):
        fs.compile(plan, kernels)
