"""Devices described in YAML files; the keys are the fields of `Device`, and `base` names a device to start from."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from fpgasim.errors import DeviceError, InputError
from fpgasim.npu.device import ENGINES, Device, described
from fpgasim.npu.presets import DEVICES, get_device

#: Keys of a file that are no described field.
_OTHERS = ("name", "base")


def load_device(path: str | os.PathLike[str]) -> Device:
    """The device in the YAML file at `path`.

    What is neither in the file nor in its `base` is a default; it counts as assumed, as what the base assumes does,
    until the file gives it. Without a `name` it is called like the file. Raises DeviceError naming the file, the key,
    its value and what would do.
    """
    where = f"device file {os.fspath(path)!r}"
    given = _mapping(Path(path), where)
    known = [f.name for f in described()]
    for key in given:
        if key not in (*_OTHERS, *known):
            raise DeviceError(f"{where}: no key {key!r}; there are {', '.join((*_OTHERS, *known))}")
    name = given.pop("name", Path(path).stem)
    if not isinstance(name, str) or not name or name in DEVICES:
        raise DeviceError(f"{where}: name={name!r} must be a text and no preset's name")
    base = given.pop("base", None)
    try:
        start = None if base is None else _base(base)
        hints = get_type_hints(Device)
        values: dict[str, Any] = {key: _typed(key, value, hints[key]) for key, value in given.items()}
        if start is None:
            return _whole(name, values)
        engine = values.get("engine", start.engine)
        _refuse_others(values, engine)
        fields = {f.name for f in described(engine)}
        new = fields - {f.name for f in described(start.engine)}
        assumed = (start.assumed | new) & fields - values.keys()
        return dataclasses.replace(start, name=name, **values, assumed=frozenset(assumed))
    except (DeviceError, InputError) as error:
        raise DeviceError(f"{where}: {error}") from error


def _whole(name: str, values: dict[str, Any]) -> Device:
    """A device without a base, which gives also those of the fields without a default that its engine has not."""
    needed = [f.name for f in described() if f.default is dataclasses.MISSING]
    if lacking := [key for key in needed if key not in values]:
        raise DeviceError(f"{', '.join(lacking)} must be given, or a base that has them, as in base: bw_a10")
    engine = values.get("engine", "matvec")
    _refuse_others({key: value for key, value in values.items() if key not in needed}, engine)
    fields = {f.name for f in described(engine)}
    return Device(name, **values, assumed=frozenset(fields - values.keys()))


def _refuse_others(values: Mapping[str, object], engine: str) -> None:
    """Refuses what only other engines have: it would do nothing."""
    for f in described():
        if f.name in values and engine in ENGINES and engine not in f.metadata["engines"]:
            others = " and ".join(f.metadata["engines"])
            raise DeviceError(f"{f.name}={values[f.name]!r} is of {others} engines, and this one is {engine}; leave it "
                              f"out or give engine: {f.metadata['engines'][0]}")  # fmt: skip


def _base(base: object) -> Device:
    if not isinstance(base, str) or base.endswith((".yaml", ".yml")):
        raise DeviceError(f"base={base!r} must be the name of a preset")
    return get_device(base)


def _typed(key: str, value: object, kind: object) -> object:
    """`value` as Device has it: YAML reads 300e6 as a text and 3.0e+8 as a fraction, which are whole here."""
    if kind not in (int, float):
        if not isinstance(value, str):
            hint = " (YAML reads yes and on as true, no and off as false)" if isinstance(value, bool) else ""
            raise DeviceError(f"{key}={value!r}{hint} must be a name")
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def _mapping(path: Path, where: str) -> dict[str, Any]:
    """The pairs of the file, each key once."""
    import yaml

    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        if not isinstance(tree, yaml.MappingNode):
            raise DeviceError(f"{where} holds no keys; lines as `lanes: 16` would do")
        found: dict[str, Any] = {}
        loader = yaml.SafeLoader("")
        for key_node, value_node in tree.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in found:
                raise DeviceError(f"{where}: key {key!r} is given twice; once would do")
            if not isinstance(value_node, yaml.ScalarNode):
                raise DeviceError(f"{where}: {key} must be one value")
            try:
                found[key] = loader.construct_object(value_node)
            except (yaml.YAMLError, ValueError, AttributeError, KeyError) as error:  # yaml raises all of these
                kind = value_node.tag.removeprefix("tag:yaml.org,2002:")
                raise DeviceError(f"{where}: {key}={reprlib.repr(value_node.value)} is no YAML {kind}; a value as in "
                                  "`lanes: 16` would do") from error  # fmt: skip
    except OSError as error:
        raise DeviceError(f"{where}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    return found
