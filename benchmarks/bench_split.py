"""A split session that is all CPU beside one ONNX Runtime session: `python benchmarks/bench_split.py [NAME …]`.

Outputs are checked to be equal bit for bit, then both run in turns on one thread: processor time, medians. A plan of
one CPU piece should take what one session takes, 1.05 of it at most. The names are those of the zoo.
"""

import argparse
import os

import numpy as np
import onnxruntime

import fpgasim as fs
from fpgasim.bench.timing import medians


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["resnet50", "efficientnet_lite0"])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    os.environ["FPGASIM_NUM_THREADS"] = "1"
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    for name in options.names:
        graph = fs.zoo.load(name)
        (tensor,) = graph.inputs
        feeds = {tensor.name: np.random.default_rng(0).standard_normal((1, *tensor.shape[1:]), np.float32)}
        whole = onnxruntime.InferenceSession(
            graph.to_proto().SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        split = fs.compile(fs.partition(graph, "bw_a10", "msfp16", force={"*": "cpu"}))
        assert [segment.kind for segment in split.plan.segments] == ["cpu"]
        for output, expected in zip(split.run(feeds).values(), whole.run(None, feeds), strict=True):
            np.testing.assert_array_equal(output, expected)
        seconds = medians(
            {"whole": lambda whole=whole, feeds=feeds: whole.run(None, feeds),
             "split": lambda split=split, feeds=feeds: split.run(feeds)},
            options.rounds, threads=1,
        )  # fmt: skip
        print(
            f"{name}: all-CPU plan {seconds['split'] * 1e3:.2f} ms, one ONNX Runtime session "
            f"{seconds['whole'] * 1e3:.2f} ms, ratio {seconds['split'] / seconds['whole']:.3f}"
        )


if __name__ == "__main__":
    main()
