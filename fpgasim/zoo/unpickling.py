"""Reads the pickles inside PyTorch checkpoints as data: nothing in them is imported, called or executed.

A small machine goes through the opcodes that `pickletools` decodes. It knows plain values, containers and the few
globals that tensors need; these never become the real Python objects but values defined here. Any other opcode or
global is an error. A dict's keys must be plain values, no attribute is looked up by a name from the file, and the work
is linear in the pickle's length.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from fpgasim.errors import WeightsError

#: Storage class of torch -> dtype: a NumPy name, or `bfloat16`.
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


#: NumPy's limit of dimensions, and one above the largest count that makes sense.
MAX_DIMENSIONS = 64
LIMIT = 1 << 63


@dataclass(frozen=True)
class Storage:
    """A run of `length` elements that the checkpoint holds under `key`, outside its pickle."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; `offset` and `strides` count elements and stay inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class _Parameter:
    """What `torch.nn.parameter.Parameter` becomes: early PyTorch pickled it as an empty object and its state."""

    tensor: Any = None


@dataclass(frozen=True)
class _Global:
    name: str


def as_tensor(value: Any) -> StoredTensor | None:
    """The tensor that a value of an unpickled state dict is; None for any other value."""
    if isinstance(value, _Parameter):
        value = value.tensor
    return value if isinstance(value, StoredTensor) else None


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    counts = (offset, *shape[: MAX_DIMENSIONS + 1], *strides[: MAX_DIMENSIONS + 1])
    if not isinstance(storage, Storage) or not all(type(count) is int and 0 <= count < LIMIT for count in counts):
        raise WeightsError("a tensor's storage, offset, shape or strides make no sense")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise WeightsError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    if all(shape):
        end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        if end > storage.length:
            raise WeightsError(f"a tensor ends at element {end} of a storage that has {storage.length}")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _ordered_dict(*items: list[Any]) -> dict[Any, Any]:
    """Python 2 gives the items as one list of pairs. They are moved, so that one list cannot be copied often."""
    result: dict[Any, Any] = {}
    for pairs in items:
        for key, value in pairs:
            _set(result, key, value)
        pairs.clear()
    return result


#: What REDUCE may do for a global.
REDUCERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
#: What NEWOBJ may make for a global.
MAKERS: dict[str, Callable[[], Any]] = {"collections.OrderedDict": dict, "torch.nn.parameter.Parameter": _Parameter}
GLOBALS = {*REDUCERS, *MAKERS, *(f"torch.{storage}" for storage in STORAGES)}

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip


class Unpickled(NamedTuple):
    value: Any
    storages: dict[str, Storage]


def unpickle(file: BinaryIO) -> Unpickled:
    """The value of the pickle at the file's position and every storage it names; the position is left behind it.

    Tensors come as StoredTensor, dicts of any kind as dict. Raises WeightsError for a global that tensors do not need
    (by its name) and an opcode that data does not need; a pickle that is cut short or otherwise broken raises whatever
    Python does.
    """
    machine = _Machine()
    return Unpickled(machine.run(file), machine.storages)


class _Machine:
    """The pickle machine's state: stack, marks (stack heights), memo, and the storages seen."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: BinaryIO) -> Any:
        stack = self.stack
        for opcode, decoded, _ in pickletools.genops(file):
            argument: Any = decoded
            match opcode.name:
                case "STOP":
                    return stack.pop()
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    self.marks.append(len(stack))
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name if name in _LITERALS:
                    stack.append(argument)
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE":
                    stack.append(tuple(self._since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    stack.append(tuple(self._pop(int(name[-1]))))
                case "APPEND":
                    items = self._pop(1)
                    self._top(list).extend(items)
                case "APPENDS":
                    items = self._since_mark()
                    self._top(list).extend(items)
                case "SETITEM":
                    self._set_items(self._pop(2))
                case "SETITEMS":
                    self._set_items(self._since_mark())
                case "BINPUT" | "LONG_BINPUT":
                    self.memo[argument] = stack[-1]
                case "MEMOIZE":
                    self.memo[len(self.memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(self.memo[argument])
                case "GLOBAL":
                    stack.append(_global(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    stack.append(_global(*self._pop(2)))
                case "BINPERSID":
                    storage = _storage(stack.pop())
                    self.storages[storage.key] = storage
                    stack.append(storage)
                case "REDUCE":
                    function, arguments = self._pop(2)
                    stack.append(_known(REDUCERS, function, "calls")(*arguments))
                case "NEWOBJ":
                    cls, _ = self._pop(2)
                    stack.append(_known(MAKERS, cls, "makes a")())
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], _Parameter):
                        stack[-1].tensor = state[0]
                    else:
                        self._top(dict)  # the metadata that a state dict carries as attributes; not needed
                case name:
                    raise WeightsError(f"its pickle uses opcode {name}, which no tensors need")
        raise EOFError("no STOP")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("stack underflow")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _top(self, kind: type[Any]) -> Any:
        top = self.stack[-1]
        if type(top) is not kind:
            raise TypeError(f"{type(top).__name__} where a {kind.__name__} must be")
        return top

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(target, key, value)


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    if type(key) not in (str, int, float, bool, bytes, type(None)):  # hashing a deep tuple can overflow the C stack
        raise TypeError(f"a dict key of type {type(key).__name__}")
    target[key] = value


def _global(module: Any, name: Any) -> _Global:
    full = f"{module}.{name}"
    if full not in GLOBALS:
        raise WeightsError(f"its pickle asks for {full!r}; only tensors are read, and nothing is executed")
    return _Global(full)


def _known(table: dict[str, Callable[..., Any]], value: Any, verb: str) -> Callable[..., Any]:
    name = value.name if isinstance(value, _Global) else type(value).__name__
    if not isinstance(value, _Global) or name not in table:
        raise WeightsError(f"its pickle {verb} {name!r}, which no tensors need")
    return table[name]


def _storage(persistent: Any) -> Storage:
    """The storage that ("storage", class, key, device, length[, view]) refers to."""
    match persistent:
        case ("storage", _Global(name), str(key), _, int(length), *view) if view in ([], [None]):
            dtype = STORAGES.get(name.removeprefix("torch."))
            if dtype is not None and 0 <= length < LIMIT:
                return Storage(key, dtype, length)
    raise WeightsError("its pickle refers to something that is not a plain storage of numbers")
