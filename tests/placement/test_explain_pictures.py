"""Plans as Graphviz text and as SVG."""

import xml.etree.ElementTree as ElementTree

import pygraphviz
import pytest

from fpgasim.errors import InputError, PlacementError
from fpgasim.placement import graphviz

from . import split_nets
from .nets import Net, classifier
from .split_nets import plan_of

NETWORKS = {"classifier": classifier(), **split_nets.many_ways()}
PLANS = {name: plan_of(graph, objective="coverage") for name, graph in NETWORKS.items()}
FILL = {"fpga": "#d7f0d8", "could": "#ffe3bd", "cannot": "#f9cfcb"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request):
    return request.param


def drawn(plan):
    """What Graphviz reads: node name -> its node, and the whole."""
    picture = pygraphviz.AGraph(string=plan.to_dot())
    tips = {node.attr["tooltip"].split(":")[0]: node for node in picture.nodes() if node.attr["tooltip"]}
    return tips, picture


def test_graphviz_reads_every_node_in_the_box_of_its_step(plan):
    nodes, picture = drawn(plan)
    assert set(nodes) == set(plan.assignment)
    for i, segment in enumerate(plan.segments):
        box = picture.get_subgraph(f"cluster{i}")
        assert {str(node) for node in box.nodes()} == {str(nodes[name]) for name in segment.nodes}
        assert box.graph_attr["label"].startswith(f"{i + 1} {segment.kind.upper()}: {len(segment.nodes)} node")


def test_colours_say_fpga_could_and_cannot():
    plan = plan_of(NETWORKS["bridged"], force={"conv3": "cpu"})
    nodes, _ = drawn(plan)
    for decision in plan.decisions:
        kind = "fpga" if decision.device == "fpga" else "cannot" if decision.fpga_s is None else "could"
        assert nodes[decision.node].attr["fillcolor"] == FILL[kind]
    assert {node.attr["fillcolor"] for node in nodes.values()} == set(FILL.values())


def test_edges_are_the_tensors_and_thick_where_they_cross(plan):
    nodes, picture = drawn(plan)
    for tensor in plan.cost_graph.tensors:
        for reader in tensor.consumers:
            if tensor.producer is not None:
                edge = picture.get_edge(nodes[tensor.producer], nodes[reader])
                crosses = plan.assignment[tensor.producer] != plan.assignment[reader]
                assert bool(edge.attr["penwidth"]) == crosses
    labels = [edge.attr["label"].strip() for edge in picture.edges() if edge.attr["label"]]
    assert len(labels) == len(plan.timing().transfers)
    assert len(picture.edges()) == sum(len(t.consumers) + t.output for t in plan.cost_graph.tensors)


def test_the_svg_is_well_formed_and_shows_every_node_with_its_reason(plan):
    root = ElementTree.fromstring(plan.to_svg())
    assert root.tag == f"{SVG}svg"
    texts = {"".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")}
    assert set(plan.assignment) <= texts
    titles = {link.get("{http://www.w3.org/1999/xlink}title", "") for link in root.iter(f"{SVG}a")}
    assert {f"{d.node}: {d.code}: {d.message}" for d in plan.decisions} <= titles


def test_names_that_mean_something_to_graphviz_are_shown_as_they_are():
    net = Net()
    y = net.op("Relu", net.conv("x", 16, 16))
    names = ['a "b" <c> & {d|e};', "é &lt; \N{GREEK SMALL LETTER ALPHA} -> [x]"]
    for node, name in zip(net.nodes, names, strict=True):
        node.name = name
    root = ElementTree.fromstring(plan_of(net.graph(y), objective="coverage").to_svg())
    assert set(names) <= {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}


def test_long_names_are_cut_in_the_middle_and_whole_in_the_tooltip():
    net = Net()
    y = net.op("Relu", "x")
    net.nodes[0].name = "begin" + "x" * 100 + "end"
    picture = pygraphviz.AGraph(string=plan_of(net.graph(y)).to_dot())
    (node,) = (node for node in picture.nodes() if node.attr["tooltip"])
    assert net.nodes[0].name in node.attr["tooltip"]
    label = node.attr["label"]
    assert "begin" in label
    assert "…" in label
    assert label.endswith("end")
    assert len(label) < 60


def test_the_same_plan_makes_the_same_picture():
    first, second = (plan_of(split_nets.detector()) for _ in range(2))
    assert first.to_dot() == second.to_dot()


def test_without_pygraphviz_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(graphviz, "_RENDER", "raise ModuleNotFoundError(\"No module named 'pygraphviz'\")")
    with pytest.raises(InputError, match=r"pip install 'fpgasim\[svg\]'"):
        PLANS["classifier"].to_svg()


def test_where_graphviz_fails_the_error_says_what_it_said(monkeypatch):
    monkeypatch.setattr(graphviz, "_RENDER", "raise SystemExit('no memory left')")
    with pytest.raises(PlacementError, match="no memory left"):
        PLANS["classifier"].to_svg()
