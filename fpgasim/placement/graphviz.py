"""A plan as a picture: Graphviz DOT, and the SVG that Graphviz makes of it.

Green nodes are on the FPGA; red ones the engine cannot compute; orange ones it could, and they are on the CPU all the
same. Each FPGA segment and each CPU piece is a box around its nodes; what crosses between the two sides, or from one
FPGA to another, is a thick edge with its size.
"""

from __future__ import annotations

import html
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fpgasim.errors import InputError, PlacementError
from fpgasim.placement.explaining import steps_of
from fpgasim.placement.explaining_stages import border_reason
from fpgasim.placement.timing import Transfer, plan_transfers
from fpgasim.placement.wording import milliseconds, plural

if TYPE_CHECKING:
    from fpgasim.placement.plan import Decision, Plan

#: Fill and border by what a decision means.
_GREEN, _ORANGE, _RED = ("#d7f0d8", "#3a8f43"), ("#ffe3bd", "#d08416"), ("#f9cfcb", "#c0392b")
_HOST = ("#eceff1", "#78909c")
#: Fill and border of the boxes around FPGA segments and CPU pieces.
_BOXES = {"fpga": ("#f1faf1", "#8bc34a"), "cpu": ("#fafafa", "#b0bec5")}
_CROSSING, _EDGE = "#1565c0", "#90a4ae"
_FONT = "Helvetica,Arial,sans-serif"
#: A longer name is cut in the middle; the whole stands in the tooltip.
_LONGEST = 28

#: Graphviz is not safe in threads and writes to stderr as it likes, so it has a process of its own.
_RENDER = """
import sys, pygraphviz
sys.stdout.buffer.write(pygraphviz.AGraph(string=sys.stdin.read()).draw(format="svg", prog="dot"))
"""


def to_svg(plan: Plan) -> str:
    """The picture as SVG: see `Plan.to_svg`."""
    result = subprocess.run([sys.executable, "-c", _RENDER], input=to_dot(plan).encode(), capture_output=True)
    errors = result.stderr.decode(errors="replace")
    if "No module named 'pygraphviz'" in errors:
        raise InputError("to_svg needs pygraphviz: pip install 'fpgasim[svg]'; to_dot needs nothing")
    if result.returncode:
        raise PlacementError(f"Graphviz cannot draw the plan: {(errors.strip() or 'no reason given').splitlines()[-1]}")
    return result.stdout.decode()


def to_dot(plan: Plan) -> str:
    """The picture in Graphviz's language: see `Plan.to_dot`."""
    return "\n".join(["digraph plan {", *(f"  {line}" for line in _lines(plan)), "}", ""])


def _lines(plan: Plan) -> Iterator[str]:
    decisions = {decision.node: decision for decision in plan.decisions}
    moved = tuple(plan_transfers(plan))
    transfers = {transfer.tensor: transfer for transfer in moved}
    ids = {name: f"n{i}" for i, name in enumerate(decisions)}
    yield f'graph [label=<{_title(plan)}>, labelloc=t, fontname="{_FONT}", fontsize=14, ranksep=0.22, nodesep=0.18];'
    yield f'node [shape=box, style="filled,rounded", fontname="{_FONT}", fontsize=10, height=0.3, margin="0.09,0.04"];'
    yield f'edge [fontname="{_FONT}", fontsize=9, color="{_EDGE}", arrowsize=0.5];'
    for i, tensor in enumerate(plan.graph.inputs):
        ids[_fed(tensor.name)] = f"in{i}"
        yield f"in{i} [{_label(tensor.name)}, shape=ellipse, {_colours(_HOST)}];"
    for i, step in enumerate(steps_of(plan, moved)):
        fill, border = _BOXES[step.kind]
        device = f" device {step.on_device}" if step.on_device else ""
        title = f"{i + 1} {step.kind.upper()}{device}: {plural(len(step.nodes), 'node')}, {milliseconds(step.seconds)}"
        if step.on_device > 1:
            title += f"\\l{_text(border_reason(plan, step.on_device - 1))}\\l"
        yield f'subgraph cluster{i} {{ label="{title}"; labeljust=l; fontsize=11; fontcolor="#37474f";'
        yield f'  style="filled,rounded"; fillcolor="{fill}"; color="{border}";'
        yield from (f"  {ids[name]} [{_node(plan, decisions[name])}];" for name in step.nodes)
        yield "}"
    yield from _edges(plan, ids, transfers)


def _title(plan: Plan) -> str:
    """Two lines: the plan, and what the colours mean."""
    said = (
        f"{plan.graph.name} on {plan.device.name} in {plan.numbers.format.name}: {milliseconds(plan.objective_s)} "
        f"predicted, {milliseconds(plan.all_cpu_s)} all on the CPU"
    )
    meanings = ((_GREEN, "on the FPGA"), (_ORANGE, "on the CPU, the FPGA could"), (_RED, "the FPGA cannot"))
    legend = "   ".join(f'<font color="{border}">\u25a0 {what}</font>' for (_, border), what in meanings)
    return f'{html.escape(said)}<br/><font point-size="4"> </font><br/>{legend}<br/> '


def _fed(name: str) -> str:
    """A key for a graph input that no node's name can be."""
    return f"\0{name}"


def _edges(plan: Plan, ids: Mapping[str, str], transfers: Mapping[str, Transfer]) -> Iterator[str]:
    """Every tensor from its maker to its readers; where it goes to another device, thick, and once with its size."""
    place = {name: plan.stage_of.get(name, 0) if side == "fpga" else -1 for name, side in plan.assignment.items()}
    for i, tensor in enumerate(plan.cost_graph.tensors):
        source = ids[_fed(tensor.name) if tensor.producer is None else tensor.producer]
        home = -1 if tensor.producer is None else place[tensor.producer]
        ends = [(ids[name], place[name]) for name in tensor.consumers]
        if tensor.output:
            yield f"out{i} [{_label(tensor.name)}, shape=ellipse, {_colours(_HOST)}];"
            ends.append((f"out{i}", -1))
        size = ""
        if tensor.name in transfers:
            moved = transfers[tensor.name].payload_bytes / 1e3
            size = f', fontcolor="{_CROSSING}", label=" {moved:,.4g} kB"'
        for end, there in ends:
            crossing = ""
            if there != home:
                crossing, size = f', color="{_CROSSING}", penwidth=1.6{size}', ""
            yield f'{source} -> {end} [tooltip="{_text(tensor.name)}"{crossing}];'


def _node(plan: Plan, decision: Decision) -> str:
    colours = _GREEN if decision.device == "fpga" else _RED if decision.fpga_s is None else _ORANGE
    seconds = decision.cpu_s if decision.device == "cpu" else decision.fpga_s or 0.0
    operator = plan.graph.node(decision.node).op_type
    tip = f"{decision.node}: {decision.code}: {decision.message}"
    label = _label(decision.node, f"{operator}  {milliseconds(seconds)}\\n")
    return f'{label}, {_colours(colours)}, tooltip="{_text(tip)}"'


def _label(name: str, first: str = "") -> str:
    return f'label="{first}{_text(_shortened(name))}"'


def _colours(colours: tuple[str, str]) -> str:
    return f'fillcolor="{colours[0]}", color="{colours[1]}"'


def _shortened(text: str) -> str:
    half = _LONGEST // 2 - 1
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"


def _text(text: str) -> str:
    return html.escape(text, quote=False).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
