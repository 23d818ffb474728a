"""What is in an image: this Python, what serving needs of its packages and libraries, fpgasim and one model.

There is no shell, no package manager and no network needed: files that lie on this machine are put where the image has
them. From the most to the least shared: system and Python, packages, fpgasim, model. Each is a layer of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fpgasim
from fpgasim.errors import WebserviceException
from fpgasim.service.oci import Entries, Entry, tree
from fpgasim.service.registry import Model

PORT = 50051
#: The user that runs it: no name of it is on any machine.
USER = 10001
COMMAND = "usr/local/bin/fpgasim"
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_BIN, _LIB, _PACKAGES, _MODEL = "usr/local/bin", "usr/local/lib", "usr/local/lib/fpgasim", "model"
#: Packages that serving never imports, and with them whatever only they need: drawings of reports, and kernels that
#: the native ones replace.
LEFT_OUT = frozenset({"matplotlib", "numba"})
#: Of the standard library: what develops, tests, installs or draws.
_NOT_SERVING = {
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "tkinter",
    "turtledemo",
}
_TESTS = {"__pycache__", "test", "tests"}
#: Of a distribution: what depends on how or from where it was installed.
_INSTALLATION = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
_ENVIRONMENT = {
    "PATH": f"/{_BIN}",
    "LD_LIBRARY_PATH": f"/{_LIB}",  # beside Python: nothing else in the image needs any
    "PYTHONPATH": f"/{_PACKAGES}",
    "PYTHONUTF8": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # the image may be read-only
    "PYTHONUNBUFFERED": "1",
    "HOME": "/tmp",
    # Large tensors stay in the heap between calls: half the time of a call with 600 KB.
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}
#: One library of ldd's answer: `name => path (address)`, or the loader, `path (address)`.
_NEEDED = re.compile(r"^\s(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
#: Files that one ldd is asked of.
_BATCH = 100
_LOADER = re.compile(r"ld[-.].*\.so[.0-9]*|ld\.so[.0-9]*")


def layers(model: Model, root: Path | None = None) -> Iterator[tuple[str, Entries]]:
    """What each layer is, and its entries; with `root` that folder in the place of Python, packages and fpgasim."""
    if root is not None:
        if not (root / COMMAND).is_file():
            raise WebserviceException(f"the root filesystem {str(root)!r} has no {COMMAND}, which runs the image")
        yield "root filesystem", tree(root)
    else:
        packages = _packages()
        yield "system and Python", _system(packages)
        yield "packages", packages
        yield "fpgasim", _fpgasim()
    yield f"model {model.id}", _model(model)


def arguments(model: Model, path: str) -> list[str]:
    """What `fpgasim serve` is to be told to serve `model` from `path`."""
    return [path, "--name", model.name, "--model-version", str(model.version)]


def settings(model: Model, description: str | None) -> dict[str, Any]:
    """The `config` of an OCI image that serves `model`: more options of `fpgasim serve` may follow its entrypoint."""
    served = arguments(model, f"/{_served(model)}")
    labels = {
        "org.opencontainers.image.title": model.name,
        "org.opencontainers.image.version": str(model.version),
        "org.opencontainers.image.licenses": "Apache-2.0",
        "io.fpgasim.version": fpgasim.__version__,
        "io.fpgasim.model": model.id,
        "io.fpgasim.model.sha256": model.sha256,
    }
    if description:
        labels["org.opencontainers.image.description"] = description
    return {
        "User": f"{USER}:{USER}",
        "ExposedPorts": {f"{PORT}/tcp": {}},
        "Env": [f"{name}={value}" for name, value in _ENVIRONMENT.items()],
        "Entrypoint": [f"/{COMMAND}", "serve", *served, "--host", "0.0.0.0", "--port", str(PORT)],
        "WorkingDir": "/",
        "Labels": labels,
        "StopSignal": "SIGTERM",
    }


def distributions() -> list[importlib.metadata.Distribution]:
    """The installed distributions that serving needs, by name: those of fpgasim[serve] without `LEFT_OUT`."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, importlib.metadata.Distribution] = {}
    seen, wanted = set(), [("fpgasim", frozenset({"serve"}))]
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise WebserviceException(
                f"an image needs the package {name!r}, which is not installed; pip install 'fpgasim[serve]' brings it"
            ) from None
        missing = extras.difference(found[name].metadata.get_all("Provides-Extra") or ())
        if missing:
            raise WebserviceException(
                f"the installed {name} knows no extra {min(missing)!r}; pip install '{name}[{min(missing)}]' renews it"
            )
        for text in found[name].requires or ():
            needed = Requirement(text)
            asked = ("", *sorted(extras))
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in asked):
                other = canonicalize_name(needed.name)
                if other not in LEFT_OUT:
                    wanted.append((other, frozenset(needed.extras)))
    del found["fpgasim"]  # has a layer of its own
    return [found[name] for name in sorted(found)]


def _packages() -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for distribution in distributions():
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if _serves(file.parts) and path.is_file():
                entries[f"{_PACKAGES}/{PurePosixPath(file)}"] = Entry(path.resolve())
    return entries


def _serves(parts: Sequence[str]) -> bool:
    """Whether a file of a distribution is of use: no test, no script outside the packages, no note of the installer."""
    return (
        ".." not in parts
        and not _TESTS.intersection(parts)
        and parts[-1] not in _INSTALLATION
        and not parts[-1].endswith(".pyc")
    )


def _fpgasim() -> dict[str, Entry]:
    """The package and its kernels, which lie elsewhere where it is installed to be worked on."""
    command = f"#!/{_BIN}/python3\nfrom fpgasim.cli import main\n\nmain()\n"
    entries = {COMMAND: Entry(command.encode(), 0o755)}
    for name, inner in (("fpgasim", ""), ("fpgasim.kernels", "kernels")):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        (folder,) = spec.submodule_search_locations
        entries |= tree(Path(folder), str(PurePosixPath(_PACKAGES, "fpgasim", inner)), _left_out)
    return entries


def _model(model: Model) -> dict[str, Entry]:
    return {_served(model): Entry(model.path)}


def _served(model: Model) -> str:
    """Where the image has the file that it serves."""
    sha256 = model.path.name
    (path, *_) = [content.path for content in model.contents if content.sha256 == sha256]
    return f"{_MODEL}/{PurePosixPath(path).name}"


def _system(packages: Mapping[str, Entry]) -> dict[str, Entry]:
    """Python, its library, the shared libraries that all need, and what a system has to have."""
    people = f"root:x:0:0:root:/:/\nfpgasim:x:{USER}:{USER}:fpgasim:/tmp:/\n"
    groups = f"root:x:0:\nfpgasim:x:{USER}:\n"
    interpreter = Path(sys.executable).resolve()
    entries = {
        "etc/passwd": Entry(people.encode()),
        "etc/group": Entry(groups.encode()),
        "tmp": Entry(mode=0o1777),
        **{folder: Entry(mode=0o755) for folder in ("dev", "proc", "sys", _MODEL)},  # where runtimes mount
        f"{_BIN}/{_PYTHON}": Entry(interpreter, 0o755),
        f"{_BIN}/python3": Entry(link=_PYTHON, mode=0o777),
        **tree(Path(sysconfig.get_path("stdlib")), f"{_LIB}/{_PYTHON}", _left_out),
    }
    return entries | _libraries([*entries.values(), *packages.values()])


def _left_out(path: str) -> bool:
    """Whether the path in the standard library, or in fpgasim, is of no use to serving."""
    parts = PurePosixPath(path).parts
    return (
        bool(_TESTS.intersection(parts))
        or parts[0] in _NOT_SERVING
        or parts[0].startswith("config-")  # to link against Python
        or (parts[0] == "lib-dynload" and parts[-1].startswith(("_tkinter", "_test", "_xxtest", "xxlimited")))
        or parts[-1].endswith((".pyc", ".exe"))
    )


def _libraries(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The shared libraries that these files need and that are not among them: the loader where they expect it, the
    others in one folder."""
    files = {entry.source for entry in entries if isinstance(entry.source, Path)}
    binaries = sorted(str(path) for path in files if _is_elf(path))
    needed: dict[str, Entry] = {}
    for first in range(0, len(binaries), _BATCH):
        try:
            said = subprocess.run(
                ["ldd", *binaries[first : first + _BATCH]], capture_output=True, text=True, check=False
            ).stdout
        except OSError as error:
            raise WebserviceException(
                f"an image needs ldd, which tells what libraries Python needs: {error.strerror}"
            ) from error
        for found in set(_NEEDED.findall(said)):
            path = Path(found)
            if path.resolve() in files:
                continue
            if _LOADER.fullmatch(path.name):
                needed[found.removeprefix("/")] = Entry(path.resolve(), 0o755)
            else:
                needed[f"{_LIB}/{path.name}"] = Entry(path.resolve(), 0o644)
    return needed


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
