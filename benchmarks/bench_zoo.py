"""The networks of the zoo in the engine's numbers: `python benchmarks/bench_zoo.py [NAME …] [--format …] [--device …]`.

Seeded weights and a seeded picture, once through ONNX Runtime in float32 and once through the plan with as much as
possible on the FPGA. Prints, for the docs' table: the share of multiply-accumulates and the segments on the FPGA, the
plan's milliseconds, the event model's, and the signal over noise of the outputs (the least of an SSD's twelve).
"""

import argparse

import numpy as np
import onnx_ir
import onnxruntime

import fpgasim as fs

NAMES = ("resnet50_slim", "resnet152", "densenet121", "vgg16", "ssd_vgg")


def picture(seed: int) -> np.ndarray:
    """Blocks of 8x8 pixels of one colour, (256, 256, 3)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    return np.kron(pixels, np.ones((8, 8, 1), np.uint8))


def noise_db(expected: np.ndarray, got: np.ndarray) -> float:
    signal = expected.astype(np.float64)
    return float(10 * np.log10((signal**2).sum() / ((signal - got) ** 2).sum()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--format", nargs="*", default=["bw_1s5e5m", "msfp16"])
    parser.add_argument("--device", default="bw_a10")
    options = parser.parse_args()
    for name in options.names:
        graph = fs.zoo.load(name)
        x = fs.zoo.preprocess(name, picture(0))
        reference = onnxruntime.InferenceSession(onnx_ir.to_proto(graph.model).SerializeToString())
        expected = dict(zip([tensor.name for tensor in graph.outputs], reference.run(None, {"input": x}), strict=True))
        for format in options.format:
            plan = fs.partition(graph, options.device, format, objective="coverage")
            session = fs.compile(plan)
            got = session.run({"input": x})
            noise = min(noise_db(array, got[key]) for key, array in expected.items())
            on_fpga = sum(segment.kind == "fpga" for segment in plan.segments)
            print(
                f"{name} {format} on {options.device}: {plan.fpga_mac_share:.1%} of MACs on the FPGA in {on_fpga} "
                f"segment(s), {plan.objective_s * 1e3:.2f} ms, event model {plan.timing().total_ms:.2f} ms, "
                f"{noise:.1f} dB"
            )


if __name__ == "__main__":
    main()
