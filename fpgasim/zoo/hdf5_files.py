"""Reads the arrays of an HDF5 file, as Keras writes its `.h5` and `.weights.h5`; needs the optional package h5py."""

from typing import Any, BinaryIO

from fpgasim.errors import WeightsError
from fpgasim.zoo.elements import Array

MAGIC = b"\x89HDF\r\n\x1a\n"


def read_hdf5(file: BinaryIO, limit: int) -> dict[str, Array]:
    """The numeric datasets by their path. Links are not followed, and only what lies in the file itself is read.

    Raises WeightsError without h5py, for data outside the file and for more than `limit` bytes unpacked.
    """
    try:
        import h5py
    except ImportError as error:
        raise WeightsError("it is HDF5, which the package h5py reads: pip install 'fpgasim[hdf5]'") from error
    arrays: dict[str, Array] = {}
    total = 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub" or item.shape is None:
            return
        if item.external or item.is_virtual:
            raise WeightsError(f"tensor {name!r} lies in another file, where nothing is read")
        total += item.nbytes
        if total > limit:
            raise WeightsError(f"it would unpack to more than {limit} bytes")
        arrays[name] = item[()].reshape(item.shape)

    with h5py.File(file, "r") as archive:
        archive.visititems(visit)
    return arrays
