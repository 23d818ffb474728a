"""The optimised graph computes what ONNX Runtime computes on the original file, and every pass leaves it sound."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.graph import Graph, load, optimize, verify

from .models import BLOCKS, OPSETS, assert_same_outputs, convnet, feeds_for, light_model, run


def optimized_with_checks(model) -> Graph:
    """`model` optimised, verified after every pass that changed it."""
    return optimize(load(model, optimize=False), after_pass=verify)


@pytest.mark.parametrize("opset", OPSETS)
def test_every_block_in_every_opset(opset):
    model = convnet(BLOCKS, opset=opset, seed=opset)
    graph = optimized_with_checks(model)
    feeds = feeds_for(model)
    assert_same_outputs(run(graph.to_proto(), feeds), run(model, feeds))
    bound = graph.bind({"N": 2})
    verify(bound, "bind")
    assert_same_outputs(run(bound.to_proto(), feeds), run(model, feeds))


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.lists(st.sampled_from(BLOCKS), max_size=6),
    opset=st.sampled_from(OPSETS),
    channels=st.sampled_from([2, 4, 6]),
    size=st.integers(5, 9),
    batch=st.sampled_from(["N", None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_small_convnets(blocks, opset, channels, size, batch, seed):
    model = convnet(blocks, opset=opset, channels=channels, size=size, batch=batch, seed=seed)
    graph = optimized_with_checks(model)
    feeds = feeds_for(model, seed)
    want = run(model, feeds)
    assert_same_outputs(run(graph.to_proto(), feeds), want)
    assert_same_outputs(run(load(graph.to_proto()).to_proto(), feeds), want)


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "resnet50"])
def test_networks_that_onnx_ships_with_seeded_weights(name):
    model = light_model(name)
    graph = load(model)
    verify(graph, "all passes")
    feeds = feeds_for(model)
    assert_same_outputs(run(graph.to_proto(), feeds), run(model, feeds))


def test_caffes_densenet_keeps_only_the_batch_norms_that_cannot_fold():
    graph = load(light_model("densenet121"))
    ops = [node.op_type for node in graph.nodes]
    assert ops.count("Conv") == 121
    assert ops.count("BatchNormalization") == 62
    assert {"Mul", "Add", "Unsqueeze"}.isdisjoint(ops)


def test_input_and_output_names_and_shapes_are_kept():
    model = convnet(BLOCKS)
    graph = load(model)
    assert [(t.name, t.shape, t.dtype) for t in graph.inputs] == [("image", ("N", 3, 12, 12), np.float32)]
    assert [(t.name, t.shape, t.dtype) for t in graph.outputs] == [("scores", ("N", 5), np.float32)]


def test_tensors_of_surviving_nodes_keep_their_names():
    model = convnet(("residual", "conv_bn_relu", "noop", "max_pool"))
    known = {name for node in model.graph.node for name in node.output}
    assert {name for node in load(model).nodes for name in node.outputs} <= known


def test_loading_twice_gives_the_same_graph():
    model = convnet(BLOCKS, opset=13)
    assert load(model).fingerprint() == load(model).fingerprint()
