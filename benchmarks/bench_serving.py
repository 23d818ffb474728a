"""What a server adds to a run: `python benchmarks/bench_serving.py [--calls N] [--tls] [--model NAME]`.

One caller, a server in a process of its own. Two requests: a picture of 100 KB, and 1x224x224x3 float32, 602 KB. The
answer of the server is compared with `Servable.run` in
this process bit for bit; then calls and runs alternate, and the difference of the medians is what the server adds.

The networks are one pooling each, behind the decoding of the picture, so that their own time does not drown what is
measured; `--model resnet50` shows the same on a network (with random weights). Beside the medians stands the fastest
tenth: on a machine that others use too, the medians tell of them as well.
"""

import argparse
import io
import os
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

import fpgasim
from fpgasim.service import CpuStage, ModelDefinition, OnnxStage, SeededWeightsWarning, servable, tensors, wire
from fpgasim.zoo import AzurePreprocessing

#: What a server may add, in milliseconds: the picture, the tensor.
LIMITS = {"100 KB picture": 1.5, "602 KB tensor": 2.5}
KEY = "benchmark-key"


def pooling(path: Path) -> None:
    """1x224x224x3 float32 to its 1x3 largest values."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 224, 224, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    node = helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph([node], "pooling", [x], [y], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def pipeline(path: Path) -> None:
    """Pictures, decoded and made 8x8, to their largest values."""
    definition = ModelDefinition(name="pictures")
    small = AzurePreprocessing(output_height=8, output_width=8, preserve_aspect_ratio=False)
    definition.pipeline.append(CpuStage(small, layout="NCHW"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalMaxPool", ["x"], ["y"])], "pooling", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    definition.pipeline.append(OnnxStage(fpgasim.load(model)))
    definition.save(path)


def picture() -> bytes:
    """A JPEG file of about 100 KB."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for quality in range(95, 10, -3):
        file = io.BytesIO()
        PIL.Image.fromarray(noise).save(file, "JPEG", quality=quality)
        if file.tell() < 105_000:
            break
    return file.getvalue()


def measure(model: str, request: dict[str, Any], calls: int, tls: Path | None) -> list[list[float]]:
    """Milliseconds of a call and of a run: the fastest tenth, and the median."""
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
    return [[float(ms) for ms in np.quantile(times, [0.1, 0.5]) * 1e3] for times in runs]


def bare(request: dict[str, Any], calls: int) -> list[float]:
    """Milliseconds of a call to a server that looks at nothing: what gRPC takes, in the same two numbers."""
    code = """if True:
        import grpc
        from concurrent import futures
        from fpgasim.service.server import keep_memory
        keep_memory()
        handler = grpc.unary_unary_rpc_method_handler(lambda message, context: b"")
        server = grpc.server(futures.ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        server.start()
        server.wait_for_termination()
    """
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        with closing(_channel(server.stdout.readline().strip(), None)) as channel:
            message, answer = wire.methods(wire.PREDICTION_SERVICE)["Predict"]
            call = channel.unary_unary("/s/m", message.SerializeToString, answer.FromString)
            asked = message()
            for name, array in request.items():
                asked.inputs[name].CopyFrom(tensors.to_proto(array, content=True))
            times = [_seconds(lambda: call(asked)) for _ in range(calls + 20)][20:]
    finally:
        server.terminate()
        server.wait(60)
    return [float(ms) for ms in np.quantile(times, [0.1, 0.5]) * 1e3]


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
    options = parser.parse_args()
    data = np.array([picture(), None], object)[:1]
    tensor = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        pooling(folder / "pooling.onnx")
        pipeline(folder / "pictures.zip")
        work: dict[str, tuple[str, dict[str, Any]]] = {
            "100 KB picture": (str(folder / "pictures.zip"), {"images": data}),
            "602 KB tensor": (str(folder / "pooling.onnx"), {"x": tensor}),
        }
        if options.model:
            work = {"100 KB picture": (options.model, {"images": data})}
        tls = folder / "tls" if options.tls else None
        found = {
            name: [*measure(model, request, options.calls, tls), bare(request, options.calls)]
            for name, (model, request) in work.items()
        }
    print(f"{'TLS' if tls else 'plain'}, key, one caller, {options.calls} calls and runs in turns")
    for name, (call, run, floor) in found.items():
        print(
            f"{name:>15}: call {call[1]:.2f} ms, run {run[1]:.2f} ms, the server adds {call[1] - run[1]:.2f} ms "
            f"(fastest tenth {call[0] - run[0]:.2f}; it may add {LIMITS[name]}; "
            f"gRPC alone takes {floor[1]:.2f}, {floor[0]:.2f})"
        )


if __name__ == "__main__":
    main()
