"""Small models and clients for the tests of the server; the stubs are made of the wire's own descriptors."""

import dataclasses
import threading
from contextlib import contextmanager

import grpc
import numpy as np
import onnx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from fpgasim.service import Server, ServerConfig, servable, tensors, wire
from fpgasim.service.servables import Servable, Signature
from fpgasim.service.steps import Done, Step, TensorSpec

KEY, KEY2 = "primary-key-1", "secondary-key-2"
#: No key, in the clear.
OPEN = ServerConfig(port=0)
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


def linear(path, scale=1.0):
    """An ONNX file of y = x w * scale, whose values every format has exactly."""
    w = numpy_helper.from_array((WEIGHTS * np.float32(scale)), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "linear", [x], [y], [w])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def linear_servable(folder, name="linear", scale=1.0, version=1):
    return servable(linear(folder / f"{name}-{scale}.onnx", scale), name=name, version=version)


def made(run, name="echo", version=1, inputs=None, outputs=None, labels=None):
    """A servable of one step, the function `run` (feeds -> outputs)."""
    inputs = inputs or (TensorSpec("in:0", np.dtype(np.float32), (None, 2)),)
    outputs = outputs or (TensorSpec("out:0", np.dtype(np.float32), (None, 2)),)

    def step(feeds, machine):
        return Done(run(feeds), 0.0, cycles=7, fpga_seconds=2e-6)

    names = {spec.name: spec.name for spec in inputs}, {spec.name: spec.name for spec in outputs}
    steps = [Step("step", inputs, outputs, step, reads=names[0], writes=names[1])]
    return Servable(name, version, steps, Signature.of(inputs, outputs), labels)


class Held:
    """A servable whose calls wait until `go` is set, but for the one that warms it up; `entered` counts them."""

    def __init__(self, name="held"):
        self.go, self.entered, self.warm = threading.Event(), threading.Semaphore(0), False
        self.servable = made(self._run, name)

    def _run(self, feeds):
        if self.warm:
            self.entered.release()
            assert self.go.wait(30)
        self.warm = True
        return {"out:0": feeds["in:0"]}


@contextmanager
def serving(*servables, config=OPEN, **changes):
    """A running server of these; `changes` are to its config."""
    server = Server({one.name: one for one in servables}, dataclasses.replace(config, **changes))
    server.start()
    try:
        yield server
    finally:
        server.drain(0.0)


@contextmanager
def channel(server, root=None, pair=None, **options):
    """A channel to the server, over TLS if `root` (PEM) is given."""
    given = [(f"grpc.{name}", value) for name, value in options.items()]
    target = f"127.0.0.1:{server.port}"
    if root is None:
        made = grpc.insecure_channel(target, given)
    else:
        made = grpc.secure_channel(target, grpc.ssl_channel_credentials(root, *(pair or ())), given)
    with made:
        yield made


def stub(channel, method, service=wire.PREDICTION_SERVICE):
    """The callable of a method; takes and gives messages of the wire."""
    request, response = wire.methods(service)[method]
    return channel.unary_unary(f"/{service}/{method}", request.SerializeToString, response.FromString)


def request(**inputs):
    """A PredictRequest; `__` in a name stands for `:`."""
    made = wire.message("tensorflow.serving.PredictRequest")()
    for name, array in inputs.items():
        made.inputs[name.replace("__", ":")].CopyFrom(tensors.to_proto(np.asarray(array), content=True))
    return made


def arrays(response):
    return {name: tensors.from_proto(proto, name) for name, proto in response.outputs.items()}


def bearer(key):
    return (("authorization", f"Bearer {key}"),)


def health(channel, service="", timeout=5):
    """The answer of a health check, as a word."""
    found = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(found.status)


def status(call, *args, **kwargs):
    """The code and text that a call fails with."""
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError("the call did not fail")


def write(folder, certificate, name="server"):
    """A certificate in files; their paths."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    for path, data in zip(paths, (certificate.chain, certificate.key), strict=True):
        temporary = path.with_suffix(".new")
        temporary.write_bytes(data)
        temporary.replace(path)
    return paths
