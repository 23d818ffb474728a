"""The messages and services of the wire, in a descriptor pool of their own.

`protos/*.proto` say what they are, `protos/wire.binpb` is their FileDescriptorSet; `python -m fpgasim.service.wire`
makes it anew (with grpcio-tools). A pool of our own lives beside TensorFlow's or Triton's generated classes in one
process, whatever version of protobuf those were made with. Its messages do not pickle: pass arrays between processes.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
INFERENCE_SERVICE = "inference.GRPCInferenceService"

_FILES = ("tensor.proto", "serving.proto", "inference.proto", "saved_model.proto")
_SET = "wire.binpb"


@cache
def pool() -> Any:
    """The DescriptorPool that holds all messages and services of the wire, well-known types included."""
    made = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet()
    for module in (any_pb2, wrappers_pb2):
        files.file.add().ParseFromString(module.DESCRIPTOR.serialized_pb)
    files.MergeFromString(resources.files("fpgasim.service").joinpath("protos", _SET).read_bytes())
    for file in files.file:
        made.Add(file)
    return made


@cache
def message(name: str) -> Any:
    """The class of the message `name`, with its package: `message("tensorflow.TensorProto")`."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))


@cache
def enumeration(name: str) -> Any:
    """The values of the enumeration `name` by their names: `enumeration("tensorflow.DataType")["DT_FLOAT"]` is 1."""
    return {value.name: value.number for value in pool().FindEnumTypeByName(name).values}


@cache
def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """Method -> (class of its request, class of its response), for one of the services named above."""
    found = pool().FindServiceByName(service).methods
    return {
        method.name: (message(method.input_type.full_name), message(method.output_type.full_name)) for method in found
    }


def describe() -> bytes:
    """The FileDescriptorSet of `protos/*.proto`, as protoc makes it; needs grpcio-tools. RuntimeError if it fails."""
    import tempfile

    from grpc_tools import protoc

    source = resources.files("fpgasim.service").joinpath("protos")
    known = resources.files("grpc_tools").joinpath("_proto")
    with resources.as_file(source) as folder, resources.as_file(known) as types, tempfile.TemporaryDirectory() as made:
        target = Path(made, _SET)
        options = [f"-I{folder}", f"-I{types}", f"--descriptor_set_out={target}"]
        failed = protoc.main(["protoc", *options, *_FILES])
        if failed:
            raise RuntimeError(f"protoc ended with {failed} on {', '.join(_FILES)} in {folder}")
        return target.read_bytes()


if __name__ == "__main__":
    Path(__file__).parent.joinpath("protos", _SET).write_bytes(describe())
