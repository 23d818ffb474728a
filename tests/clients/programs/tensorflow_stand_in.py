"""The few functions of TensorFlow that Azure's clients call, over TensorFlow's own messages, so that those clients run
unmodified where the TensorFlow of their time (1.x, Python 3.6) cannot be had. Importing this puts them in place."""

import math
import sys
import types

import numpy as np
import tensorflow
from tensorflow.core.framework import tensor_pb2, types_pb2

_DTYPES = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_STRING: object}
_NUMBERS = {np.dtype(dtype): number for number, dtype in _DTYPES.items()}


def make_tensor_proto(values, dtype=None, shape=None):
    array = np.asarray(values) if dtype is None else np.asarray(values, _DTYPES[dtype])
    proto = tensor_pb2.TensorProto(dtype=_NUMBERS[array.dtype])
    for size in array.shape if shape is None else shape:
        proto.tensor_shape.dim.add(size=size)
    if proto.dtype == types_pb2.DT_STRING:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.tobytes()
    return proto


def make_ndarray(proto):
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype not in _DTYPES:
        raise TypeError(f"Cannot convert {proto.dtype} to a TensorFlow DType.")
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, _DTYPES[proto.dtype]).reshape(shape)
    values = np.array(proto.float_val, np.float32)
    return np.concatenate([values, np.repeat(values[-1:], math.prod(shape) - len(values))]).reshape(shape)


def _module(name, **members):
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(members)
    return module


tensorflow.VERSION = "1.10.0"
_util = {"make_tensor_proto": make_tensor_proto, "make_ndarray": make_ndarray}
tensorflow.contrib = types.SimpleNamespace(util=types.SimpleNamespace(**_util))
_module("tensorflow.compat")
_module("tensorflow.compat.v1", string=types_pb2.DT_STRING, as_dtype=int, contrib=tensorflow.contrib, **_util)
sys.modules["tensorflow.compat"].v1 = sys.modules["tensorflow.compat.v1"]
# what azureml-accel-models names in an annotation, of the rest of Azure's SDK
for _name in ("azureml.core", "azureml.core.webservice"):
    _module(_name)
_module("azureml.core.webservice.aks", AksWebservice=object)
