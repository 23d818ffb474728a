"""Whole networks beside ONNX Runtime: `python benchmarks/bench_session.py [NAME …]`.

For each network, on one thread and on two: bits checked, then milliseconds in turns with ONNX Runtime's fp32 and int8,
and the profile by kind of work. The names are those of the zoo, and of the topologies that ship with the onnx package
(`light_vgg19`, `light_densenet121`, …), which get seeded weights.
"""

import argparse
from pathlib import Path

import onnx
import onnx.backend.test

import fpgasim as fs
from fpgasim.bench import measure_network, peak_rate
from fpgasim.kernels import backend

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
NETWORKS = ("resnet50", "light_vgg19", "light_densenet121", "efficientnet_lite0")


def load(name: str) -> fs.Graph:
    if name.startswith("light_"):
        return fs.load(fs.zoo.seed_weights(onnx.load(LIGHT / f"{name}.onnx")))
    return fs.zoo.load(name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--format", default="msfp16")
    parser.add_argument("--accumulator", nargs="*", default=["fp32", "exact"])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--int8", action="store_true", help="also ONNX Runtime's own int8 network")
    options = parser.parse_args()
    peak = peak_rate(backend(), 1)
    print(f"{backend().name}" + (f", peak {peak / 1e9:.0f} GMAC/s a thread" if peak else ""))
    for name in options.names:
        graph = load(name)
        for accumulator in options.accumulator:
            plan = fs.partition(graph, "bw_a10", options.format, objective="coverage", accumulator=accumulator)
            for threads in options.threads:
                s = measure_network(plan, threads=threads, rounds=options.rounds, int8=options.int8)
                rate = s.macs / s.seconds
                print(
                    f"{name} {options.format} {accumulator}, {threads} thread(s): {s.seconds * 1e3:.1f} ms, "
                    f"{s.seconds / s.seconds_fp32:.2f} of ONNX Runtime fp32's {s.seconds_fp32 * 1e3:.1f} ms"
                    + (f", {s.seconds / s.seconds_int8:.2f} of int8's" if s.seconds_int8 else "")
                    + f", {rate / 1e9:.0f} GMAC/s"
                    + (f", {rate / (peak * threads):.0%} of peak" if peak else "")
                    + f", {s.fpga_mac_share:.1%} of MACs on the FPGA"
                )
                rows = sorted(s.profile.items(), key=lambda row: -row[1])
                print("  " + ", ".join(f"{kind} {seconds * 1e3:.2f}" for kind, seconds in rows))


if __name__ == "__main__":
    main()
