"""The tensors of the wire: every type, both forms, and what a hostile message claims."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as nps

from fpgasim.errors import InputError
from fpgasim.service import tensors, wire

NUMBERS = [kind.dtype for kind in tensors.KINDS if kind.name != "DT_STRING"]
TENSOR = wire.message("tensorflow.TensorProto")


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def arrays(dtypes):
    return st.sampled_from(dtypes).flatmap(
        lambda dtype: nps.arrays(np.uint8, nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)).map(
            lambda bits: (bits % 100).astype(dtype)
        )
    )


def listed(dtype, shape, values, **fields):
    """A TensorProto whose elements are in a list of values."""
    kind = tensors.kind_of(np.dtype(dtype))
    proto = TENSOR(dtype=kind.number, **(fields or {kind.values: values}))
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize("content", [True, False])
@given(array=arrays(NUMBERS))
def test_an_array_goes_through_a_tensor_proto_and_comes_back_bit_for_bit(content, array):
    proto = TENSOR.FromString(tensors.to_proto(array, content=content).SerializeToString())
    assert same(tensors.from_proto(proto, "x"), array)


@given(array=arrays([d for d in NUMBERS if d.kind != "c"]))
def test_an_array_goes_through_raw_data_and_comes_back_bit_for_bit(array):
    kind = tensors.kind_of(array.dtype)
    assert same(tensors.from_raw(tensors.to_raw(array), kind.datatype, array.shape, "x"), array)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_infinities_nans_and_extremes_keep_their_bits(dtype):
    if dtype.kind in "iu":
        array = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    elif dtype.kind == "b":
        array = np.array([True, False])
    else:
        array = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32).astype(dtype)
    for content in (True, False):
        assert same(tensors.from_proto(tensors.to_proto(array, content=content), "x"), array)


def test_floats_are_in_the_list_of_values_unless_content_is_asked_for():
    proto = tensors.to_proto(np.array([1.5, 2.0], np.float32))
    assert list(proto.float_val) == [1.5, 2.0]
    assert proto.tensor_content == b""


@pytest.mark.parametrize("shape", [(), (0,), (2,), (2, 1)])
def test_strings_of_any_bytes_come_back(shape):
    items = [b"\xff\x00", b""][: int(np.prod(shape))]
    array = np.array([*items, None], object)[:-1].reshape(shape)
    for back in (
        tensors.from_proto(tensors.to_proto(array), "x"),
        tensors.from_raw(tensors.to_raw(array), "BYTES", shape, "x"),
    ):
        assert back.shape == shape
        assert back.reshape(-1).tolist() == items


def test_text_is_sent_as_utf8():
    assert list(tensors.to_proto(np.array(["ä"])).string_val) == ["ä".encode()]


def test_a_list_shorter_than_the_shape_repeats_its_last_value():
    assert tensors.from_proto(listed("f4", (2, 2), [1.0, 3.0]), "x").tolist() == [[1, 3], [3, 3]]
    assert tensors.from_proto(listed(object, (3,), [b"a"]), "x").tolist() == [b"a"] * 3


def test_half_and_bfloat16_values_are_bits():
    assert tensors.from_proto(listed("f2", (1,), [0x3C00]), "x")[0] == 1.0
    assert tensors.from_proto(listed(ml_dtypes.bfloat16, (1,), [0x3F80]), "x")[0] == 1.0


def test_numbers_of_the_open_inference_protocols_lists_are_values():
    assert tensors.from_values([1, 2.5], "FP16", (2,), "x").tolist() == [1.0, 2.5]
    assert tensors.from_values(["a", b"b"], "BYTES", (2,), "x").tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("proto", "says"),
    [
        (listed("f4", (2,), [1.0, 2.0, 3.0]), "has 3 values in float_val"),
        (listed("f4", (2,), []), "neither tensor_content nor float_val"),
        (listed("f4", (-1,), [1.0]), "shape"),
        (listed("f4", (1,) * 40, [1.0]), "at most 32 sizes"),
        (listed("f4", (1 << 40,), [1.0]), "larger than the"),
        (listed(object, (1 << 40,), [b"x"]), "larger than the"),
        (listed("f4", (1 << 62, 1 << 62), [1.0]), "larger than the"),
        (listed("f4", (0, 1 << 62), []), "larger than the"),
        (listed("f4", (1 << 62, 0), []), "larger than the"),
        (listed(object, (1 << 40, 0), []), "larger than the"),
        (listed(object, (300_000,), [bytes(1000)]), "strings of 302400000 bytes"),
        (listed("u1", (1,), [256]), "uint8"),
        (listed("f4", (2,), [], tensor_content=b"123"), "needs 8 bytes and has 3"),
        (listed(object, (1,), [], tensor_content=b"123"), "string_val"),
        (listed("c8", (1,), [1.0]), "has 1 values"),
        (TENSOR(dtype=20), "dtype 20"),
        (TENSOR(dtype=99), "dtype 99"),
        (TENSOR(), "dtype 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_tensor_named(proto, says):
    with pytest.raises(InputError, match=f"'image'.*{says}"):
        tensors.from_proto(proto, "image")


def test_an_unknown_rank_is_refused():
    proto = TENSOR(dtype=1)
    proto.tensor_shape.unknown_rank = True
    with pytest.raises(InputError, match="unknown rank"):
        tensors.from_proto(proto, "image")


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "says"),
    [
        (b"1234", "FP32", (2,), "needs 8 bytes and has 4"),
        (b"1234", "FP33", (1,), "datatype 'FP33'"),
        (b"1234", "", (1,), "datatype ''"),
        (b"\x05\x00\x00\x00abc", "BYTES", (1,), "does not hold 1 elements"),
        (b"\x01\x00\x00\x00ab", "BYTES", (1,), "does not hold 1 elements"),
        (b"", "BYTES", (1,), "does not hold 1 elements"),
        (b"", "FP32", (-1,), "shape"),
    ],
)
def test_raw_data_that_does_not_fit_is_refused(data, datatype, shape, says):
    with pytest.raises(InputError, match=f"'image'.*{says}"):
        tensors.from_raw(data, datatype, shape, "image")


def test_what_the_wire_does_not_have_is_refused():
    with pytest.raises(InputError, match="datetime64"):
        tensors.to_proto(np.array(["2020-01-01"], "datetime64[D]"))
    with pytest.raises(InputError, match="NoneType"):
        tensors.to_proto(np.array([None]))
    with pytest.raises(InputError, match="complex64"):
        tensors.to_raw(np.zeros(1, np.complex64))
    with pytest.raises(InputError, match="has 1 values"):
        tensors.from_values([1], "FP32", (2,), "image")


@pytest.mark.parametrize(
    ("values", "datatype", "says"),
    [
        ([1, None], "FP32", "no float32: a null"),
        ([1.5, "2"], "FP64", "no float64: a str"),
        ([True, 1], "FP16", "no float16: a bool"),
        ([1, 2.0], "INT32", "no int32: a float"),
        ([1, True], "UINT8", "no uint8: a bool"),
        ([True, None], "BOOL", "no bool: a null"),
        ([None, "1"], "BF16", "no bfloat16: a null and str"),
        (["a", None], "BYTES", "NoneType"),
    ],
)
def test_values_of_json_that_are_no_numbers_are_not_made_some(values, datatype, says):
    with pytest.raises(InputError, match=says):
        tensors.from_values(values, datatype, (2,), "image")


@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_tensor_never_do_more_than_raise_an_input_error(data):
    from google.protobuf.message import DecodeError

    try:
        proto = TENSOR.FromString(data)
    except DecodeError:
        return
    try:
        array = tensors.from_proto(proto, "x", max_bytes=1 << 16)
    except InputError:
        return
    assert array.nbytes <= 1 << 16
