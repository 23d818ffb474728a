"""What a server adds to a run: `python benchmarks/bench_serving.py [--calls N] [--tls] [--model NAME]`.

One caller, a server in a process of its own. Two requests: a picture of 100 KB as a string, whose decoding is the
servable's and not counted, and 1x224x224x3 float32, 602 KB. The answer of the server is compared with `Servable.run` in
this process bit for bit; then calls and runs alternate, and the difference of the medians is what the server adds.

The networks are one pooling each, so that their own time does not drown what is measured; `--model resnet50` shows the
same on a network (with random weights).
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import PIL.Image
from onnx import TensorProto, helper

from fpgasim.service import SeededWeightsWarning, servable, tensors, wire

#: What a server may add, in milliseconds: the picture, the tensor.
LIMITS = {"100 KB picture": 1.5, "602 KB tensor": 2.5}
KEY = "benchmark-key"


def pooling(path: Path) -> None:
    """1x224x224x3 float32 to its 1x3 means."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 224, 224, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    node = helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph([node], "pooling", [x], [y], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def strings(path: Path) -> None:
    """A string to itself, as short as a network can be that takes a picture."""
    x = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1])
    node = helper.make_node("Shape", ["x"], ["y"])
    graph = helper.make_graph([node], "strings", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def picture() -> bytes:
    """A JPEG file of about 100 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for quality in range(95, 10, -3):
        file = io.BytesIO()
        PIL.Image.fromarray(noise).save(file, "JPEG", quality=quality)
        if file.tell() < 105_000:
            break
    return file.getvalue()


def measure(model: str, request: dict[str, Any], calls: int, tls: Path | None) -> tuple[float, float]:
    """Milliseconds of a call and of a run, the medians."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeededWeightsWarning)
        local = servable(model)
    local.warm_up()
    options = ["--self-signed", str(tls)] if tls else []
    server = subprocess.Popen(
        [sys.executable, "-m", "fpgasim", "serve", model, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FPGASIM_AUTH_KEY": KEY},
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split(" on ")[1].split(" ")[0].rpartition(":")[2]
        with closing(_channel(port, tls)) as channel:
            message, answer = wire.methods(wire.PREDICTION_SERVICE)["Predict"]
            call = channel.unary_unary(
                f"/{wire.PREDICTION_SERVICE}/Predict", message.SerializeToString, answer.FromString
            )
            asked = message()
            for name, array in request.items():
                asked.inputs[name].CopyFrom(tensors.to_proto(array, content=True))
            metadata = (("authorization", f"Bearer {KEY}"),)
            expected = local.run(request).outputs
            for name, proto in call(asked, metadata=metadata).outputs.items():
                np.testing.assert_array_equal(tensors.from_proto(proto, name), expected[name])
            runs: tuple[list[float], list[float]] = [], []
            for i in range(calls + 20):
                for times, function in (
                    (runs[0], lambda: call(asked, metadata=metadata)),
                    (runs[1], lambda: local.run(request)),
                ):
                    seconds = _seconds(function)
                    if i >= 20:
                        times.append(seconds)
    finally:
        server.terminate()
        server.wait(60)
    return statistics.median(runs[0]) * 1e3, statistics.median(runs[1]) * 1e3


def _channel(port: str, tls: Path | None) -> Any:
    if tls is None:
        return grpc.insecure_channel(f"127.0.0.1:{port}")
    root = grpc.ssl_channel_credentials((tls / "server.pem").read_bytes())
    return grpc.secure_channel(f"127.0.0.1:{port}", root)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--model", help="a network of the zoo that takes pictures, instead of the small ones")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    data = np.array([picture(), None], object)[:1]
    tensor = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pooling(folder / "pooling.onnx")
        strings(folder / "strings.onnx")
        work: dict[str, tuple[str, dict[str, Any]]] = {
            "100 KB picture": (str(folder / "strings.onnx"), {"x": data}),
            "602 KB tensor": (str(folder / "pooling.onnx"), {"x": tensor}),
        }
        if options.model:
            work = {"100 KB picture": (options.model, {"images": data})}
        tls = folder / "tls" if options.tls else None
        found = {name: measure(model, request, options.calls, tls) for name, (model, request) in work.items()}
    if options.json:
        print(json.dumps({name: {"call_ms": call, "run_ms": run} for name, (call, run) in found.items()}))
        return
    print(f"{'TLS' if tls else 'plain'}, key, one caller, medians of {options.calls}, in turns")
    for name, (call, run) in found.items():
        print(f"{name:>15}: call {call:.2f} ms, run {run:.2f} ms, server adds {call - run:.2f} of {LIMITS[name]} ms")


if __name__ == "__main__":
    main()
