"""Memory and speed of `fs.quantize` on a tensor of 64 MB: `python benchmarks/bench_quantize.py [FORMAT …]`.

For blocks along the last axis and, NCHW, along the channels: what it holds at most beside input and result, as a share
of the input, and numbers a second of processor time on one thread, checks included.
"""

import argparse
import statistics
import time
import tracemalloc

import numpy as np

import fpgasim as fs


def extra_memory(x: np.ndarray, name: str, axis: int) -> float:
    """Bytes beside input and result at the peak, for each byte of the input."""
    tracemalloc.start()
    tensor = fs.quantize(x, name, axis)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - tensor.codes.nbytes - tensor.exponents.nbytes) / x.nbytes


def rate(x: np.ndarray, name: str, axis: int) -> float:
    seconds = []
    for _ in range(5):
        start = time.process_time()
        fs.quantize(x, name, axis)
        seconds.append(time.process_time() - start)
    return x.size / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("formats", nargs="*", default=["msfp16", "mxint8", "fp16_bfp", "mxfp8_e4m3", "mxfp4_e2m1"])
    rng = np.random.default_rng(0)
    names = parser.parse_args().formats
    for shape, axis in (((256, 256, 256), -1), ((16, 256, 64, 64), 1)):
        x = rng.standard_normal(shape, np.float32)
        for name in names:
            memory, speed = extra_memory(x, name, axis), rate(x, name, axis)
            print(
                f"{shape} along axis {axis}, {name}: {memory:.3f} of the input, {speed / 1e9:.2f} Gelem/s", flush=True
            )


if __name__ == "__main__":
    main()
