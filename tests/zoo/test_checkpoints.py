"""ONNX, safetensors and npz checkpoints; PyTorch's have a file of their own."""

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import helper, numpy_helper

import fpgasim as fs
from fpgasim.errors import WeightsError

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.array([1.5, -2.0], np.float16),
    "double": np.array([[1e300]]),
    "count": np.array(7, np.int64),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 5), np.float32),
}


def assert_same(got, expected):
    assert list(got) == list(expected)
    for key, array in expected.items():
        assert got[key].dtype == array.dtype
        assert got[key].shape == array.shape
        np.testing.assert_array_equal(got[key], array)


def onnx_model(tensors):
    graph = helper.make_graph([], "weights", [], [], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def npy(shape, dtype="<f4", data=b"", fortran=False):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": fortran, "descr": dtype})
    return stream.getvalue() + data


def tensors_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_npz(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def test_onnx_initializers_are_read(tmp_path):
    onnx.save(onnx_model([numpy_helper.from_array(array, key) for key, array in ARRAYS.items()]), tmp_path / "m.onnx")
    assert_same(fs.zoo.read_checkpoint(tmp_path / "m.onnx"), ARRAYS)


def test_onnx_initializers_beside_the_file_are_read(tmp_path):
    big = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = onnx_model([numpy_helper.from_array(big, "big")])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    assert (tmp_path / "m.bin").stat().st_size >= big.nbytes
    assert_same(fs.zoo.read_checkpoint(tmp_path / "m.onnx"), {"big": big})


def test_onnx_initializers_outside_the_folder_are_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "in").mkdir()
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, "../secret", offset=0, length=16)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "in" / "m.onnx").write_bytes(onnx_model([tensor]).SerializeToString())
    with pytest.raises(WeightsError, match=r"m\.onnx' is broken: ValidationError"):
        fs.zoo.read_checkpoint(tmp_path / "in" / "m.onnx")


def test_safetensors_written_by_its_own_library_are_read(tmp_path):
    safetensors.numpy.save_file(ARRAYS, tmp_path / "m.safetensors", metadata={"format": "np"})
    got = fs.zoo.read_checkpoint(tmp_path / "m.safetensors")
    assert_same({key: got[key] for key in ARRAYS}, ARRAYS)


@pytest.mark.parametrize("fill", [np.savez, np.savez_compressed])
def test_npz_is_read(tmp_path, fill):
    fill(tmp_path / "m.npz", **ARRAYS)
    assert_same(fs.zoo.read_checkpoint(tmp_path / "m.npz"), ARRAYS)


def test_npz_in_fortran_order_and_big_endian_comes_out_native(tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    np.savez(tmp_path / "m.npz", w=array)
    assert_same(fs.zoo.read_checkpoint(tmp_path / "m.npz"), {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_bfloat16_comes_as_float32_of_the_same_value(tmp_path):
    codes = np.arange(1 << 16, dtype=np.uint16)
    expected = codes.view(ml_dtypes.bfloat16).astype(np.float32)
    header = {"w": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 1 << 17]}}
    (tmp_path / "m.safetensors").write_bytes(tensors_file(header, codes.tobytes()))
    got = fs.zoo.read_checkpoint(tmp_path / "m.safetensors")["w"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.ravel().view(np.uint32), expected.view(np.uint32))
    tensor = helper.make_tensor("w", onnx.TensorProto.BFLOAT16, [2], np.array([1.5, -3.0]))
    onnx.save(onnx_model([tensor]), tmp_path / "m.onnx")
    assert_same(fs.zoo.read_checkpoint(tmp_path / "m.onnx"), {"w": np.array([1.5, -3.0], np.float32)})


def test_a_prefix_that_every_name_has_is_dropped(tmp_path):
    np.savez(tmp_path / "m.npz", **{"module.a": np.ones(1), "module.b": np.ones(1)})
    assert list(fs.zoo.read_checkpoint(tmp_path / "m.npz")) == ["a", "b"]
    np.savez(tmp_path / "n.npz", **{"module.a": np.ones(1), "b": np.ones(1)})
    assert list(fs.zoo.read_checkpoint(tmp_path / "n.npz")) == ["module.a", "b"]


BAD_SAFETENSORS = {
    "beyond the buffer": (
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        bytes(4),
        "lies at bytes 0 to 8",
    ),
    "before the buffer": ({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, bytes(4), "lies at bytes -4"),
    "backwards": ({"w": {"dtype": "F32", "shape": [0], "data_offsets": [4, 0]}}, bytes(4), "lies at bytes 4 to 0"),
    "size and shape": ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4), "of F32 .2. lies at"),
    "negative shape": ({"w": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, bytes(4), "makes no sense"),
    "huge shape": ({"w": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, b"", "is broken"),
    "unknown dtype": (
        {"w": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}},
        bytes(4),
        "dtype 'F4'; there are F64",
    ),
    "no offsets": ({"w": {"dtype": "F32", "shape": [1]}}, bytes(4), "lacks a dtype, shape or data_offsets"),
    "no dict": ({"w": 3}, b"", "lacks a dtype, shape or data_offsets"),
    "overlap": (
        {key: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for key, at in (("a", 0), ("b", 4))},
        bytes(12),
        "'a' and 'b' overlap",
    ),
    "no json": (b"{not json", bytes(4), "is broken: JSONDecodeError"),
    "deep json": (b'{"a":' + b"[" * 200_000, bytes(4), "is broken: RecursionError"),
    "huge number": (b'{"a":' + b"9" * 10_000 + b"}", bytes(4), "is broken: ValueError"),
    "nothing": ({}, b"", "holds no tensors"),
}


@pytest.mark.parametrize(("header", "data", "message"), BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS)
def test_a_broken_safetensors_file_is_refused(tmp_path, header, data, message):
    (tmp_path / "m.safetensors").write_bytes(tensors_file(header, data))
    with pytest.raises(WeightsError, match=message) as error:
        fs.zoo.read_checkpoint(tmp_path / "m.safetensors")
    assert "m.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


BAD_NPZ = {
    "objects": ([("a.npy", npy((1,), "|O", b"\x80\x04N."))], "dtype object; numbers are read, never objects"),
    "pickle for an array": ([("a.npy", b"\x80\x04N.")], "is broken"),
    "short": ([("a.npy", npy((3,), data=bytes(8)))], "of float32 .3,. has 8 bytes of data"),
    "long": ([("a.npy", npy((1,), data=bytes(8)))], "has 8 bytes of data"),
    "claims terabytes": ([("a.npy", npy((1 << 40,)))], "has 0 bytes of data"),
    "negative shape": ([("a.npy", npy((-2, -2), data=bytes(16)))], "is broken"),
    "header that is code": ([("a.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')")], "is broken"),
    "unclosed header": ([("a.npy", b"\x93NUMPY\x01\x00\x04\x00" + b"{(L\n")], "is broken"),
    "another file": ([("readme.txt", b"hello")], "'readme.txt' is not an array"),
    "nothing": ([], "it begins with b'PK"),
}


@pytest.mark.parametrize(("entries", "message"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_a_broken_npz_is_refused(tmp_path, entries, message):
    with pytest.raises(WeightsError, match=message):
        fs.zoo.read_checkpoint(write_npz(tmp_path / "m.npz", entries))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    size = 1 << 28
    path = write_npz(tmp_path / "m.npz", [("a.npy", npy((size // 4,), data=bytes(size)))], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 19
    with pytest.raises(WeightsError, match="bytes would unpack to 268435"):
        fs.zoo.read_checkpoint(path)


def test_a_damaged_npz_is_refused(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.zeros(100))
    data = bytearray((tmp_path / "m.npz").read_bytes())
    data[300] ^= 1
    (tmp_path / "m.npz").write_bytes(data)
    with pytest.raises(WeightsError, match="Bad CRC-32"):
        fs.zoo.read_checkpoint(tmp_path / "m.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty .0 bytes."),
        (b"hello, world", "begins with b'hello, wo'; checkpoints of ONNX, .*, TensorFlow and HDF5 are read"),
        (b"\x08\x07\xff\xff\xff", "is broken: DecodeError"),
        (b"\x08\x08", "holds no tensors"),
        (b"P", "begins with b'P'"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=f"weights.bin'.*{message}"):
        fs.zoo.read_checkpoint(tmp_path / "weights.bin")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"'.*none.pth' cannot be read: No such file"):
        fs.zoo.read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        fs.zoo.read_checkpoint(tmp_path)
