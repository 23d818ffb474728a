"""PyTorch checkpoints, read without PyTorch.

zip (since 1.6): `<name>/data.pkl` holds the pickle, `<name>/data/<key>` each storage, `<name>/byteorder` its order.
legacy: four pickles (magic number, protocol version, system facts, the object), a pickle of the storages' keys, then
each storage in that order as an int64 length and its little-endian elements.
"""

import math
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from fpgasim.errors import WeightsError
from fpgasim.zoo.elements import Array, ByteOrder, elements, item_size
from fpgasim.zoo.unpickling import Storage, StoredTensor, as_tensor, unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
#: Where training scripts keep the state dict among epoch, optimizer and the like.
NESTS = ("state_dict", "model_state_dict", "model")
#: Tensors may share a storage, so together they may be larger than the file, but not by more than this.
MAX_GROWTH = 4
ALLOWANCE_BYTES = 1 << 24


def read_legacy(file: BinaryIO, size: int) -> dict[str, Array]:
    """The tensors of a legacy checkpoint of `size` bytes; raises WeightsError."""
    if unpickle(file).value != LEGACY_MAGIC:
        raise WeightsError("it is a pickle but not a PyTorch checkpoint: no magic number")
    if unpickle(file).value != LEGACY_PROTOCOL:
        raise WeightsError(f"its PyTorch protocol is not {LEGACY_PROTOCOL}")
    unpickle(file)  # the writer's type sizes; the elements are little-endian whatever it says
    value, storages = unpickle(file)
    keys = unpickle(file).value
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(storages):
        raise WeightsError("its list of storages is not that of its tensors")
    positions: dict[str, int] = {}
    position = file.tell()
    for key in keys:
        storage = storages[key]
        end = position + 8 + storage.length * item_size(storage.dtype)
        if end > size:
            raise WeightsError(f"it is cut short: storage {key} ends at byte {end} of {size}")
        file.seek(position)
        if (length := int.from_bytes(file.read(8), "little")) != storage.length:
            raise WeightsError(f"storage {key} has {length} elements; its tensors expect {storage.length}")
        positions[key], position = position + 8, end

    def read(storage: Storage) -> bytes:
        file.seek(positions[storage.key])
        return file.read(storage.length * item_size(storage.dtype))

    return _read_tensors(value, read, size)


def read_zip(archive: zipfile.ZipFile, size: int) -> dict[str, Array]:
    """The tensors of a zip checkpoint of `size` bytes; raises WeightsError."""
    entries = {info.filename: info for info in archive.infolist()}
    # PyTorch stores without compression; so nothing here can unpack to more than the file.
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise WeightsError("its entries are compressed, as PyTorch never writes them")
    if sum(info.file_size for info in entries.values()) > size:
        raise WeightsError(f"its entries together are larger than the file's {size} bytes")
    root = next(name for name in entries if name.endswith("data.pkl")).removesuffix("data.pkl")
    with archive.open(root + "data.pkl") as file:
        value = unpickle(file).value  # type: ignore[arg-type]
    byte_order = archive.read(f"{root}byteorder").strip() if f"{root}byteorder" in entries else b"little"
    if byte_order not in (b"little", b"big"):
        raise WeightsError(f"its byte order is {byte_order[:20]!r}; b'little' or b'big' is read")

    def read(storage: Storage) -> bytes:
        name, expected = f"{root}data/{storage.key}", storage.length * item_size(storage.dtype)
        if name not in entries:
            raise WeightsError(f"it lacks storage {name!r}")
        if entries[name].file_size < expected:
            raise WeightsError(f"storage {name!r} has {entries[name].file_size} bytes; its tensors expect {expected}")
        return archive.read(name)

    return _read_tensors(value, read, size, "<" if byte_order == b"little" else ">")


def _read_tensors(value: Any, read: Callable[[Storage], bytes], size: int, order: ByteOrder = "<") -> dict[str, Array]:
    tensors = _state_dict(value)
    total = sum(math.prod(tensor.shape) * item_size(tensor.storage.dtype) for tensor in tensors.values())
    if total > MAX_GROWTH * size + ALLOWANCE_BYTES:
        raise WeightsError(f"its tensors would take {total} bytes, made from a file of {size}")
    users: dict[Storage, list[str]] = {}
    for name, tensor in tensors.items():
        users.setdefault(tensor.storage, []).append(name)
    arrays: dict[str, Array] = {}
    for storage, names in users.items():
        whole = elements(read(storage), storage.dtype, storage.length, order=order)
        arrays |= {name: _view(whole, tensors[name]) for name in names}
    return {name: arrays[name] for name in tensors}


def _state_dict(value: Any) -> dict[str, StoredTensor]:
    """The named tensors of a checkpoint's object, which may be a state dict or hold one."""
    for nest in NESTS:
        if isinstance(value, dict) and isinstance(value.get(nest), dict):
            value = value[nest]
    if not isinstance(value, dict):
        raise WeightsError(f"it holds {type(value).__name__} where a state dict must be")
    tensors = ((name, as_tensor(entry)) for name, entry in value.items())
    return {name: tensor for name, tensor in tensors if isinstance(name, str) and tensor is not None}


def _view(whole: Array, tensor: StoredTensor) -> Array:
    """The tensor in C order, its own memory. The bounds were checked when it was made."""
    strides = [stride * whole.itemsize for stride in tensor.strides]
    return np.ndarray(tensor.shape, whole.dtype, whole, tensor.offset * whole.itemsize, strides).copy()
