"""TensorFlow's checkpoints of both versions, and Keras' HDF5."""

import contextlib
import sys

import h5py
import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import WeightsError

from .tensorflow_writer import write_bundle, write_version_1

ARRAYS = {
    "vgg_16/conv1/conv1_1/weights": np.arange(54, dtype=np.float32).reshape(3, 3, 3, 2),
    "vgg_16/conv1/conv1_1/biases": np.array([1.5, -2.0], np.float32),
    "double": np.array([[1e300]]),
    "flags": np.array([True, False]),
    "global_step": np.array(-7, np.int64),
    "signed": np.array([-3, 2**30], np.int32),
    "small": np.arange(5, dtype=np.uint8),
}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("ending", ["", ".index", ".data-00000-of-00001"])
def test_version_2_is_read_by_its_name_its_index_or_its_data(tmp_path, ending):
    halves = ARRAYS | {"half": np.array([0.5, -1], np.float16)}
    prefix = write_bundle(tmp_path / "model.ckpt", halves)
    assert_same(fs.zoo.read_checkpoint(f"{prefix}{ending}"), halves)


def test_version_1_is_read(tmp_path):
    assert_same(fs.zoo.read_checkpoint(write_version_1(tmp_path / "vgg_16.ckpt", ARRAYS)), ARRAYS)


def test_strings_are_no_weights(tmp_path):
    prefix = write_bundle(tmp_path / "m", ARRAYS | {"_CHECKPOINTABLE_OBJECT_GRAPH": np.array([b"graph"])})
    assert_same(fs.zoo.read_checkpoint(prefix), ARRAYS)


def test_an_unnamed_prefix_without_an_index_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match=r"model.ckpt' cannot be read: No such file"):
        fs.zoo.read_checkpoint(tmp_path / "model.ckpt")


def test_missing_data_are_named(tmp_path):
    prefix = write_bundle(tmp_path / "m", ARRAYS)
    (tmp_path / "m.data-00000-of-00001").unlink()
    with pytest.raises(WeightsError, match=r"'.*m' cannot be read: No such file"):
        fs.zoo.read_checkpoint(prefix)


def test_data_that_are_cut_short_are_named(tmp_path):
    prefix = write_bundle(tmp_path / "m", ARRAYS)
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"tensor 'vgg_16/conv1/conv1_1/weights' does not lie in 'm.data-"):
        fs.zoo.read_checkpoint(prefix)


def test_what_tensorflow_cannot_have_written_whole_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="'small' is saved in slices; save it whole"):
        fs.zoo.read_checkpoint(write_bundle(tmp_path / "m", ARRAYS, slices=("small",)))
    with pytest.raises(WeightsError, match="a block is compressed"):
        fs.zoo.read_checkpoint(write_bundle(tmp_path / "n", ARRAYS, compression=1))


@pytest.mark.parametrize("write", [write_version_1, write_bundle])
def test_a_table_with_any_byte_changed_or_cut_off_is_read_or_refused_and_nothing_else(tmp_path, write):
    write(tmp_path / "m", {"w": np.arange(3, dtype=np.float32), "wide": np.zeros((2, 2), np.float32)})
    path = tmp_path / ("m" if write is write_version_1 else "m.index")
    whole = path.read_bytes()
    broken = [whole[:i] + bytes([whole[i] ^ flip]) + whole[i + 1 :] for i in range(len(whole)) for flip in (1, 0x80)]
    for data in (*broken, *(whole[:i] for i in range(len(whole)))):
        path.write_bytes(data)
        with contextlib.suppress(WeightsError):
            arrays = fs.zoo.read_checkpoint(path)
            assert sum(array.size for array in arrays.values()) <= len(whole)


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip" if array.ndim else None)
    return path


def test_hdf5_is_read(tmp_path):
    assert_same(fs.zoo.read_checkpoint(write_hdf5(tmp_path / "m.h5", ARRAYS)), ARRAYS)


def test_hdf5_data_in_other_files_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("w", (4,), "f4", external=[(str(tmp_path / "secret"), 0, 16)])
    with pytest.raises(WeightsError, match="'w' lies in another file"):
        fs.zoo.read_checkpoint(tmp_path / "m.h5")
    write_hdf5(tmp_path / "other.h5", {"w": np.ones(3)})
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["w"] = h5py.ExternalLink("other.h5", "w")
    with pytest.raises(WeightsError, match="holds no tensors"):
        fs.zoo.read_checkpoint(tmp_path / "m.h5")


def test_an_hdf5_bomb_is_refused(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("w", (1 << 32,), "f4", chunks=(1 << 16,), compression="gzip")
    with pytest.raises(WeightsError, match="would unpack to more than"):
        fs.zoo.read_checkpoint(tmp_path / "m.h5")


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "m.h5", ARRAYS)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"it is HDF5.*pip install 'fpgasim\[hdf5\]'"):
        fs.zoo.read_checkpoint(path)
