"""What a program is refused for, and its file."""

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fpgasim.errors import InputError, ProgramError
from fpgasim.kernels.contract import Operand
from fpgasim.npu import Numbers, resolve_numbers
from fpgasim.npu.isa import Mem, MvMul, VRd, VvAdd, VWr, encode
from fpgasim.npu.programs import Block, Port, Program, depth, native_tiles
from fpgasim.numerics import CATALOGUE

from .engine import DEVICE, NUMBERS, N, blocked, chain, numbers_like, program

everywhere = pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
HEAD = struct.Struct("<8sIIQ32s")


def example(numbers: Numbers, tiles: int = 11) -> Program:
    """A program with everything in it; the contents hold zeros of both signs."""
    vectors = numbers_like((3, N), numbers, 1)
    vectors[0, :2] = 0.0, -0.0
    weights = numbers_like((N, tiles * N), numbers, 2)
    weights[0, :4] = 0.0
    return Program(
        "example",
        DEVICE,
        numbers,
        (
            Block(tuple(map(encode, chain(VRd(Mem.NET_QUEUE), MvMul(0), VWr(Mem.NET_QUEUE)))), 3, 'a "layer"', 77),
            Block(()),
            Block(tuple(map(encode, chain(VRd(Mem.DRAM, 1), VvAdd(Mem.ADDSUB_VRF_1), VWr(Mem.NET_QUEUE))))),
        ),
        {Mem.DRAM: vectors, Mem.ADDSUB_VRF_1: vectors[:2]},
        {
            Mem.MATRIX_RF: native_tiles(blocked(weights[:, :N], numbers), N),
            Mem.DRAM: native_tiles(blocked(weights, numbers), N),
        },
        (Port("x", (3, N)),),
        (Port("y", (1, N, 2, 2), halo=(1, 2, 3, 4)), Port("z", (4, 5), packed=True)),
    )


WORDS = sum(len(block.words) for block in example(NUMBERS["brainwave"], 1).blocks)


def bits(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.dtype.str, array.shape, array.tobytes()


def same_tiles(got: Operand, expected: Operand) -> None:
    assert bits(got.mantissas) == bits(expected.mantissas)
    assert (got.exponents is None) == (expected.exponents is None)
    if got.exponents is not None and expected.exponents is not None:
        assert bits(got.exponents) == bits(expected.exponents)
    assert (got.block, got.fraction_bits, got.channels) == (expected.block, expected.fraction_bits, expected.channels)


def same_program(got: Program, expected: Program) -> None:
    for name in ("name", "device", "numbers", "blocks", "inputs", "outputs"):
        assert getattr(got, name) == getattr(expected, name)
    assert list(got.vectors) == list(expected.vectors)
    assert list(got.tiles) == list(expected.tiles)
    for mem in got.vectors:
        assert bits(got.vectors[mem]) == bits(expected.vectors[mem])
    for mem in got.tiles:
        same_tiles(got.tiles[mem], expected.tiles[mem])


@everywhere
def test_a_program_is_the_same_after_saving_and_loading(numbers: Numbers, tmp_path: Path) -> None:
    made = example(numbers)
    made.save(tmp_path / "a.fpgaprog")
    same_program(Program.load(tmp_path / "a.fpgaprog"), made)


@pytest.mark.parametrize("name", CATALOGUE)
def test_tiles_of_every_format_are_the_same_after_saving_and_loading(name: str, tmp_path: Path) -> None:
    made = example(resolve_numbers(DEVICE, name), tiles=1)
    made.save(tmp_path / "a.fpgaprog")
    same_program(Program.load(tmp_path / "a.fpgaprog"), made)


def test_weights_are_packed(tmp_path: Path) -> None:
    numbers = NUMBERS["brainwave"]
    example(numbers, 10).save(tmp_path / "10")
    example(numbers, 30).save(tmp_path / "30")
    grown = (tmp_path / "30").stat().st_size - (tmp_path / "10").stat().st_size
    assert grown == 20 * N * (5 + 6 * N) // 8


def test_the_same_program_makes_the_same_file_which_replaces_another(tmp_path: Path) -> None:
    made = example(NUMBERS["brainwave"])
    for name in ("a", "b", "b"):
        made.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_program_of_nothing_is_saved_and_loaded(tmp_path: Path) -> None:
    made = program(NUMBERS["fp32"])
    made.save(tmp_path / "a")
    same_program(Program.load(tmp_path / "a"), made)


def refused(path: Path) -> str:
    with pytest.raises(ProgramError) as error:
        Program.load(path)
    assert str(error.value).startswith(f"program file {str(path)!r} ")
    return str(error.value).removeprefix(f"program file {str(path)!r} ")


def test_a_file_of_another_version_a_cut_one_and_a_changed_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.fpgaprog"
    example(NUMBERS["brainwave"], 1).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:8] + struct.pack("<I", 2) + data[12:])
    assert refused(path) == "is of version 2; this fpgasim reads version 1"
    path.write_bytes(data[:-1])
    assert refused(path) == f"is cut off: it has {len(data) - 1} bytes and should have {len(data)}"
    path.write_bytes(data[:20])
    assert refused(path) == f"is cut off: it has 20 bytes, its beginning alone {HEAD.size}"
    path.write_bytes(data + b"\0")
    assert refused(path) == f"is too long: it has {len(data) + 1} bytes and should have {len(data)}"
    for at in (HEAD.size - 1, HEAD.size, HEAD.size + 500, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert refused(path) == "is damaged: its checksum is wrong"
    path.write_bytes(b"PK" + data)
    assert refused(path) == "is no program; Program.save writes one"
    path.unlink()
    assert refused(path) == "cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": None}, "is damaged: 'NoneType' object is not a mapping"),
        ({"name": ...}, "is damaged: lacks 'name'"),
        ({"name": 5}, "is damaged: program name 5 must be a text"),
        (
            {"blocks": [{"words": WORDS, "macs": "x"}]},
            "is damaged: program 'example': block 0: macs='x' must be a whole",
        ),
        ({"blocks": [{"words": WORDS, "repeat": 1.5}]}, "is damaged: program 'example': block 0: repeat=1.5 must be a"),
        (
            {"blocks": [{"words": 10**6, "repeat": 1, "name": ""}]},
            "is damaged: its head speaks of 8000000 bytes where ",
        ),
        ({"tiles": []}, "is damaged: its head does not speak of its last "),
        ({"vectors": [{"mem": "matrix_rf", "count": 5}]}, "is damaged: "),
        (
            {"inputs": [{"name": "x", "shape": [0], "packed": False, "halo": [0] * 4}]},
            "is damaged: program 'example': port 'x': shape",
        ),
    ],
)
def test_a_head_that_says_what_cannot_be_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    example(NUMBERS["brainwave"], 1).save(path)
    data = path.read_bytes()
    magic, version, head_bytes, body_bytes, _ = HEAD.unpack_from(data)
    facts = json.loads(data[HEAD.size : HEAD.size + head_bytes]) | change
    head = json.dumps({key: value for key, value in facts.items() if value is not ...}).encode()
    rest = head + data[HEAD.size + head_bytes :]
    path.write_bytes(HEAD.pack(magic, version, len(head), body_bytes, hashlib.sha256(rest).digest()) + rest)
    assert refused(path).startswith(message)


def test_a_head_of_lists_in_lists_is_refused(tmp_path: Path) -> None:
    head = b"[" * 100_000 + b"]" * 100_000
    (tmp_path / "a").write_bytes(HEAD.pack(b"fpgaprog", 1, len(head), 0, hashlib.sha256(head).digest()) + head)
    assert refused(tmp_path / "a").startswith("is damaged: maximum recursion depth exceeded")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    made = program(NUMBERS["fp32"])
    with pytest.raises(ProgramError, match="cannot be written: No such file or directory"):
        made.save(tmp_path / "nowhere" / "a")
    with pytest.raises(InputError, match=r"path=3 is no path; a str or a pathlib.Path would do"):
        made.save(3)  # type: ignore[arg-type]
    for use in (made.save, Program.load):
        with pytest.raises(InputError, match=r"path='a\\x00b' is no path; one without a null character would do"):
            use("a\0b")


def test_what_is_no_regular_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    for path in before:
        with pytest.raises(ProgramError) as error:
            program(NUMBERS["fp32"]).save(path)
        assert str(error.value) == (
            f"program file {str(path)!r} cannot be written: it is there and no regular file; another path would do"
        )
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()


BRAINWAVE = NUMBERS["brainwave"]
TILE = native_tiles(blocked(np.eye(N, dtype=np.float32), BRAINWAVE), N)


def many_tiles(count: int) -> Operand:
    assert TILE.exponents is not None
    repeated = np.repeat(TILE.mantissas, count, axis=0), np.repeat(TILE.exponents, count, axis=0)
    return Operand(*repeated, TILE.block, TILE.fraction_bits, N)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        *(
            ({"blocks": (Block((), repeat),)}, f"block 0: repeat={repeat!r} must be a whole number from 1 up")
            for repeat in (0, 1.5, True, "x")
        ),
        *(
            ({"blocks": (Block((), macs=macs),)}, f"block 0: macs={macs!r} must be a whole number from 0 up, or None")
            for macs in (-1, 2.0, "x")
        ),
        ({"blocks": (Block((), name=5),)}, "block 0: name=5 must be a text"),
        ({"inputs": (Port(5, (1, 5)),)}, "port name 5 must be a text"),
        ({"inputs": (Port("x", (1, 5), "x"),)}, "port 'x': packed='x' must be true or false"),
        ({"blocks": (Block((1 << 64,)),)}, "block 0: a word does not fit in 64 bits"),
        *(
            (
                {"outputs": (Port("y", shape),)},
                f"port 'y': shape {shape} has a size that is no whole number from 1 up, or none",
            )
            for shape in ((2, 0), (2.0, 1), (True, 1), ("x",), ())
        ),
        *(
            (
                {"inputs": (Port("x", shape, True, halo),)},
                f"port 'x': halo {halo} does not go with shape {shape}; four widths from 0 up around (N, C, H, W) "
                "would",
            )
            for shape, halo in (((2, 5), (1, 0, 0, 0)), ((1, 1, 2, 2), (0, 0, -1, 0)), ((1, 1, 2, 2), (0, 0, 0, 0.5)))
        ),
        (
            {"numbers": dataclasses.replace(BRAINWAVE, format=CATALOGUE["bw_1s5e5m"])},
            "format bw_1s5e5m has blocks of 128, which do not divide the native dimension 32",
        ),
        ({"vectors": {Mem.NET_QUEUE: np.zeros((1, N), np.float32)}}, "net_queue holds no vectors"),
        ({"vectors": {Mem.DRAM: np.zeros((1, N))}}, "dram: float64 of shape (1, 32); float32 of (n, 32) would do"),
        (
            {"vectors": {Mem.DRAM: np.zeros((1, 31), np.float32)}},
            "dram: float32 of shape (1, 31); float32 of (n, 32) would do",
        ),
        (
            {"vectors": {Mem.MULTIPLY_VRF_0: np.zeros((41, N), np.float32)}},
            "multiply_vrf_0: 41 vectors do not fit; there is room for 40",
        ),
        (
            {"vectors": {Mem.ADDSUB_VRF_2: np.zeros((1, N), np.float32)}},
            "addsub_vrf_2: 1 vectors do not fit; there is room for 0",
        ),
        (
            {"vectors": {Mem.DRAM: np.full((1, N), 0.1, np.float32)}},
            "dram: values are not all of the pointwise type fp16",
        ),
        ({"tiles": {Mem.INITIAL_VRF: TILE}}, "initial_vrf holds no tiles"),
        ({"tiles": {Mem.MATRIX_RF: many_tiles(81)}}, "matrix_rf: 81 tiles do not fit; there is room for 80"),
        (
            {"tiles": {Mem.DRAM: dataclasses.replace(TILE, block=16)}},
            "dram: tiles of shape (1, 32, 32); (n, 32, 32) in blocks of 32 would do",
        ),
    ],
)
def test_what_a_device_cannot_hold_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError) as error:
        Program(**{"name": "p", "device": DEVICE, "numbers": BRAINWAVE, "blocks": (), **parts})
    assert str(error.value) == f"program 'p': {message}"


def test_depths_are_those_of_the_device() -> None:
    assert [depth(DEVICE, mem) for mem in Mem] == [600, 0, 1 << 24, 80, 300, 300, 0, 0, 40, 40, 0, 0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("halo", [(0, 0, 0, 0), (1, 2, 3, 0)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, N, 2, 2), (2, 40, 3, 1), (3, 40), (2, 3, N), (70,)])
def test_a_tensor_survives_the_network_queue(
    shape: tuple[int, ...], halo: tuple[int, int, int, int], packed: bool
) -> None:
    port = Port("x", shape, packed, halo if len(shape) == 4 else (0, 0, 0, 0))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    vectors = port.to_vectors(x, N)
    assert vectors.shape == (port.vectors(N), N)
    assert np.count_nonzero(vectors) == x.size
    assert np.array_equal(port.from_vectors(vectors), x)


def test_a_port_counts_vectors_by_pixels_or_by_images() -> None:
    image, halo = (1, 3, 224, 224), (3, 3, 3, 3)
    assert Port("x", image).vectors(128) == 224 * 224
    assert Port("x", image, halo=halo).vectors(128) == 230 * 230
    assert Port("x", image, True, halo).vectors(128) == 1240  # onnxruntime's brainslice tests, kInputSize
    assert Port("y", (1, 2048, 7, 7)).vectors(128) == Port("y", (1, 2048, 7, 7), packed=True).vectors(128) == 784


def test_native_tiles_are_the_matrix_row_by_row_with_zeros_around() -> None:
    w = blocked(numbers_like((N + 3, 2 * N), BRAINWAVE), BRAINWAVE)
    tiles = native_tiles(w, N)
    assert tiles.mantissas.shape == (4, N, N)
    assert np.array_equal(tiles.mantissas[1], w.mantissas[:N, N:])
    assert np.array_equal(tiles.mantissas[2, :3], w.mantissas[N:, :N])
    assert not tiles.mantissas[2:, 3:].any()
    assert w.exponents is not None
    assert tiles.exponents is not None
    assert np.array_equal(tiles.exponents[1, :, 0], w.exponents[:N, 1])
