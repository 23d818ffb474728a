"""Named arrays from a file: ONNX, safetensors, npz, PyTorch, TensorFlow and HDF5, told apart by what is inside."""

import io
import itertools
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fpgasim.errors import WeightsError
from fpgasim.zoo import hdf5_files, tensorflow_files, torch_files
from fpgasim.zoo.elements import Array, elements, item_size
from fpgasim.zoo.unpickling import LIMIT, MAX_DIMENSIONS

#: Element types of safetensors -> a NumPy dtype or `bfloat16`.
SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
#: The format's own limit on its header.
MAX_HEADER_BYTES = 100_000_000
#: How many times its own size a file may unpack to; a small one may always reach the allowance.
MAX_GROWTH = 20
ALLOWANCE_BYTES = 1 << 26
FORMATS = "ONNX, safetensors, npz, PyTorch, TensorFlow and HDF5"
#: What DataParallel puts before every name.
PARALLEL = "module."


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The named arrays of a checkpoint: ONNX, safetensors, npz, PyTorch, TensorFlow or HDF5 (with h5py installed).

    Of PyTorch the legacy and the zip file, of TensorFlow both versions: the one file, or the name that an `.index` and
    `.data-…` files share. Of ONNX the initializers.

    bfloat16 comes as float32 of the same value. A PyTorch state dict may stand under `state_dict`, `model_state_dict`
    or `model`; a `module.` that begins every name is dropped. Nothing in the file is executed, and what it says of
    sizes is checked before memory is taken. Raises WeightsError, naming the file, for one that is missing, cut short,
    unsafe, without arrays or of another format.
    """
    path = Path(path)
    try:
        arrays = _read(tensorflow_files.index_of(path))
        if not arrays:
            raise WeightsError("it holds no tensors")
    except WeightsError as error:
        raise WeightsError(f"checkpoint {str(path)!r}: {error}") from error
    except OSError as error:
        raise WeightsError(f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a broken file makes zipfile, json, protobuf or NumPy stumble in ways of their own
        reason = " ".join(str(error).split())
        raise WeightsError(f"checkpoint {str(path)!r} is broken: {type(error).__name__}: {reason}") from error
    if all(name.startswith(PARALLEL) for name in arrays):
        arrays = {name.removeprefix(PARALLEL): array for name, array in arrays.items()}
    return arrays


def _read(path: Path) -> dict[str, Array]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
        file.seek(0)
        if not head:
            raise WeightsError("it is empty (0 bytes)")
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") < size:
            return _read_safetensors(file.read())
        if head[:1] == b"\x80":
            return torch_files.read_legacy(file, size)
        if head[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("data.pkl") for name in archive.namelist()):
                    return torch_files.read_zip(archive, size)
                return _read_npz(archive, size)
        if head[:8] == hdf5_files.MAGIC:
            return hdf5_files.read_hdf5(file, _growth_limit(size))
    if tensorflow_files.is_table(path):
        return tensorflow_files.read_table(path)
    if head[:1] == b"\x08":  # protobuf's field 1, ir_version, which every ONNX file begins with
        return _read_onnx(path)
    raise WeightsError(f"it begins with {head!r}; checkpoints of {FORMATS} are read")


def _read_safetensors(data: bytes) -> dict[str, Array]:
    """https://huggingface.co/docs/safetensors: a u64 length, that much JSON, then the buffer the tensors lie in."""
    header_size = int.from_bytes(data[:8], "little")
    if header_size > MAX_HEADER_BYTES:
        raise WeightsError(f"its header of {header_size} bytes is larger than the {MAX_HEADER_BYTES} allowed")
    header = json.loads(data[8 : 8 + header_size])
    start, arrays = 8 + header_size, {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        match entry:
            case {"dtype": str(key), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                pass
            case _:
                raise WeightsError(f"tensor {name!r} lacks a dtype, shape or data_offsets")
        if key not in SAFETENSORS:
            raise WeightsError(f"tensor {name!r} has dtype {key!r}; there are {', '.join(SAFETENSORS)}")
        if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < LIMIT for n in shape):
            raise WeightsError(f"tensor {name!r} has a shape that makes no sense")
        dtype, count = SAFETENSORS[key], math.prod(shape)
        if not 0 <= begin <= end <= len(data) - start or end - begin != count * item_size(dtype):
            raise WeightsError(
                f"tensor {name!r} of {key} {shape} lies at bytes {begin} to {end} of a buffer of {len(data) - start}"
            )
        spans.append((begin, end, name))
        arrays[name] = elements(data, dtype, count, start + begin).reshape(shape)
    spans.sort()
    for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
        if begin < end:
            raise WeightsError(f"tensors {first!r} and {second!r} overlap")
    return arrays


def _growth_limit(size: int) -> int:
    """To how many bytes a file of `size` bytes may unpack."""
    return max(MAX_GROWTH * size, ALLOWANCE_BYTES)


def _read_npz(archive: zipfile.ZipFile, size: int) -> dict[str, Array]:
    total = sum(info.file_size for info in archive.infolist())
    if total > _growth_limit(size):
        raise WeightsError(f"its {size} bytes would unpack to {total}")
    arrays = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            raise WeightsError(f"its entry {info.filename!r} is not an array; every entry of an npz ends in .npy")
        arrays[info.filename.removesuffix(".npy")] = _read_npy(archive.read(info), info.filename)
    return arrays


def _read_npy(data: bytes, name: str) -> Array:
    """The array of an npy file (numpy.lib.format), without pickled objects."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = reader(stream)
    if dtype.kind not in "fiub":
        raise WeightsError(f"its entry {name!r} has dtype {dtype}; numbers are read, never objects")
    rest = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise WeightsError(f"its entry {name!r} of {dtype} {shape} has {rest} bytes of data")
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.astype(dtype.newbyteorder("=")).reshape(shape, order="F" if fortran else "C")


def _read_onnx(path: Path) -> dict[str, Array]:
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(path)  # external data outside the model's folder is refused by onnx itself
    return {
        tensor.name: _from_onnx(numpy_helper.to_array(tensor), tensor.data_type == TensorProto.BFLOAT16)
        for tensor in model.graph.initializer
    }


def _from_onnx(array: Any, bfloat16: bool) -> Array:
    return np.asarray(array, np.float32) if bfloat16 else np.asarray(array)
