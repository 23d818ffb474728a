"""Programs written by hand compute what the kernels and the pointwise unit define, bit for bit."""

import numpy as np
import pytest

from fpgasim.errors import InputError, ProgramError
from fpgasim.kernels import available, backend, pointwise as unit
from fpgasim.kernels.contract import Array, Float32Array, Operand, Window
from fpgasim.npu import Numbers
from fpgasim.npu.interpreter import execute, initial_state
from fpgasim.npu.isa import (
    Instruction,
    Mem,
    MRd,
    MvMul,
    MWr,
    VClip,
    VPack,
    VRd,
    VRd2,
    VRd3,
    VRelu,
    VSigm,
    VTanh,
    VUnroll,
    VvAdd,
    VvASubB,
    VvBSubA,
    VvMax,
    VvMul,
    VWr,
)
from fpgasim.npu.programs import Port, Program, native_tiles

from .engine import DEVICE, NUMBERS, N, block, blocked, chain, numbers_like, program

ADD, ADD1, MUL, MUL1 = Mem.ADDSUB_VRF_0, Mem.ADDSUB_VRF_1, Mem.MULTIPLY_VRF_0, Mem.MULTIPLY_VRF_1
VRF, NET = Mem.INITIAL_VRF, Mem.NET_QUEUE
BRAINWAVE = NUMBERS["brainwave"]
everywhere = pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)


def same(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype == np.float32
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def run(found: Program, kernels: str = "reference", **feeds: Array) -> dict[str, Float32Array]:
    return execute(found, initial_state(found, feeds), kernels)


def product(x: Float32Array, w: Operand, numbers: Numbers) -> Float32Array:
    """x (rows, whole vectors) times the transpose of w, rounded to the pointwise type."""
    found = backend("reference").matmul(blocked(x, numbers), w, numbers.accumulator, numbers.order, 1)
    return unit.round_to(found, numbers.pointwise)


# Whole layers


def dense(numbers: Numbers, rows: int = 2, columns: int = 3, batch: int = 4) -> tuple[Program, Operand, Float32Array]:
    """relu(W·x + b) of `batch` inputs from the network queue, W from DRAM."""
    w = blocked(numbers_like((rows * N, columns * N), numbers, 1, 0.3), numbers)
    bias = numbers_like((rows, N), numbers, 2)
    made = program(
        numbers,
        *chain(MRd(Mem.DRAM, 0), MWr(Mem.MATRIX_RF, 5), rows=rows, columns=columns),
        *chain(VRd(NET), VWr(VRF, 10, columns), iterations_x=batch, columns=columns),
        *chain(
            VRd(VRF, 10, columns),
            MvMul(5),
            VvAdd(ADD, 0),
            VRelu(),
            VWr(NET),
            rows=rows,
            columns=columns,
            iterations_x=batch,
        ),
        vectors={ADD: bias},
        tiles={Mem.DRAM: native_tiles(w, N)},
        inputs=(Port("x", (batch, columns * N)),),
        outputs=(Port("y", (batch, rows * N)),),
    )
    return made, w, bias.reshape(-1)


@everywhere
def test_a_dense_layer(numbers: Numbers) -> None:
    made, w, bias = dense(numbers)
    x = numbers_like((4, 3 * N), numbers)
    expected = unit.relu(unit.add(product(x, w, numbers), bias, numbers.pointwise))
    assert np.count_nonzero(expected) > 50
    same(run(made, x=x)["y"], expected)


def convolution(numbers: Numbers, size: int, inputs: int, outputs: int) -> tuple[Program, Operand]:
    """A 3x3 convolution of stride 1 over an image with a halo of zeros; vectors of a pixel stand side by side."""
    c, o, padded = inputs // N, outputs // N, size + 2
    w = blocked(numbers_like((outputs, 3, 3, inputs), numbers, 3, 0.1), numbers)
    flat = Operand(
        w.mantissas.reshape(outputs, -1),
        None if w.exponents is None else w.exponents.reshape(outputs, -1),
        w.block,
        w.fraction_bits,
        9 * inputs,
    )
    # The constant zero vector is at 0 of the add unit's file: the halo is copied from there.
    made = program(
        numbers,
        *chain(VRd(ADD, 0), VWr(VRF, 0, 1), iterations_x=padded * padded * c),
        *chain(
            VRd(NET),
            VWr(VRF, (padded + 1) * c, c, padded * c),
            columns=c,
            iterations_x=size,
            iterations_y=size,
        ),
        *chain(
            VRd3(VRF, 0, c, padded * c),
            MvMul(0),
            VWr(NET),
            rows=o,
            columns=9 * c,
            iterations_x=size,
            iterations_y=size,
            window_inner=c,
            window_middle=3,
            window_outer=3,
            pitch_inner=1,
            pitch_middle=c,
            pitch_outer=padded * c,
        ),
        vectors={ADD: np.zeros((1, N), np.float32)},
        tiles={Mem.MATRIX_RF: native_tiles(flat, N)},
        inputs=(Port("x", (1, inputs, size, size)),),
        outputs=(Port("y", (1, outputs, size, size)),),
    )
    return made, w


@everywhere
def test_a_convolution_over_a_halo(numbers: Numbers) -> None:
    made, w = convolution(numbers, 5, 2 * N, 2 * N)
    x = numbers_like((1, 2 * N, 5, 5), numbers)
    image = blocked(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), numbers)
    window = Window((3, 3), pads=(1, 1, 1, 1))
    sums = backend("reference").conv2d(image, w, window, 1, numbers.accumulator, numbers.order, 1)
    expected = unit.round_to(sums, numbers.pointwise).transpose(0, 3, 1, 2)
    same(run(made, x=x)["y"], np.ascontiguousarray(expected))


@pytest.mark.parametrize("kernels", [name for name in available() if name != "reference"])
@pytest.mark.parametrize("name", ["brainwave", "msfp14-chwk"])
def test_every_backend_gives_the_bits_of_the_reference(name: str, kernels: str) -> None:
    made, _ = convolution(NUMBERS[name], 4, N, N)
    x = numbers_like((1, N, 4, 4), NUMBERS[name], scale=3)
    same(run(made, kernels, x=x)["y"], run(made, x=x)["y"])


@everywhere
def test_a_max_pool_is_one_vv_max_a_tap_over_a_halo_of_minus_infinity(numbers: Numbers) -> None:
    """3x3, stride 2, padding 1, of 6x6 pixels: 3x3 pixels, held in the add unit's file while the taps go by."""
    halo = np.full((1, N), -np.inf if numbers.pointwise != "fp16" else -65504, np.float32)
    taps = [
        chain(
            VRd(VRF, ky * 8 + kx, 2, 16),
            VvMax(ADD, 1, 1, 3),
            VWr(ADD, 1, 1, 3),
            iterations_x=3,
            iterations_y=3,
        )
        for ky in range(3)
        for kx in range(3)
    ]
    made = program(
        numbers,
        *chain(VRd(ADD, 0), VWr(VRF, 0, 1), iterations_x=64),
        *chain(VRd(ADD, 0), VWr(ADD, 1, 1), iterations_x=9),
        *chain(VRd(NET), VWr(VRF, 9, 1, 8), iterations_x=6, iterations_y=6),
        *(insn for tap in taps for insn in tap),
        *chain(VRd(ADD, 1, 1), VWr(NET), iterations_x=9),
        vectors={ADD: halo},
        inputs=(Port("x", (1, N, 6, 6)),),
        outputs=(Port("y", (1, N, 3, 3)),),
    )
    x = numbers_like((1, N, 6, 6), numbers)
    window = Window((3, 3), (2, 2), (1, 1, 1, 1))
    expected = unit.max_pool(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), window).transpose(0, 3, 1, 2)
    same(run(made, x=x)["y"], np.ascontiguousarray(expected))


def lstm(numbers: Numbers, steps: int, k: int) -> tuple[Program, list[Operand], list[Operand], Float32Array]:
    """The LSTM of Fowers et al., ISCA 2018: one block that is issued once a step. Gates in the order f i c o.

    InitialVrf: x at 0, h at k, c at 2k. AddSubVrf of MFU 0: biases, then the sums W·x + b; f·c in that of MFU 1.
    MultiplyVrf of MFU 0: c; of MFU 1: i, then o.
    """
    ws = [blocked(numbers_like((k * N, k * N), numbers, 10 + g, 0.2), numbers) for g in range(4)]
    us = [blocked(numbers_like((k * N, k * N), numbers, 20 + g, 0.2), numbers) for g in range(4)]
    biases = numbers_like((4 * k, N), numbers, 30)
    size = {"rows": k, "columns": k}

    def gate(g: int, *behind: Instruction) -> list[Instruction]:
        return chain(VRd(VRF, k), MvMul((4 + g) * k * k), VvAdd(ADD, (4 + g) * k), *behind, **size)

    step = block(
        *chain(VRd(NET), VWr(VRF, 0), **size),
        *(
            insn
            for g in range(4)
            for insn in chain(VRd(VRF, 0), MvMul(g * k * k), VvAdd(ADD, g * k), VWr(ADD, (4 + g) * k), **size)
        ),
        *gate(0, VSigm(), VvMul(MUL, 0), VWr(ADD1, 0)),
        *gate(1, VSigm(), VWr(MUL1, 0)),
        *gate(2, VTanh(), VvMul(MUL1, 0), VvAdd(ADD1, 0), VWr(MUL, 0), VWr(VRF, 2 * k)),
        *gate(3, VSigm(), VWr(MUL1, k)),
        *chain(VRd(VRF, 2 * k), VTanh(), VvMul(MUL1, k), VWr(VRF, k), VWr(NET), **size),
        repeat=steps,
    )
    tiles = [native_tiles(w, N) for w in (*ws, *us)]
    exponents = [t.exponents for t in tiles if t.exponents is not None]
    pinned = Operand(
        np.concatenate([t.mantissas for t in tiles]),
        np.concatenate(exponents) if exponents else None,
        tiles[0].block,
        tiles[0].fraction_bits,
        N,
    )
    made = Program(
        "lstm",
        DEVICE,
        numbers,
        (step,),
        {VRF: np.zeros((2 * k, N), np.float32), ADD: biases, MUL: np.zeros((k, N), np.float32)},
        {Mem.MATRIX_RF: pinned},
        (Port("x", (steps, 1, k * N)),),
        (Port("h", (steps, 1, k * N)),),
    )
    return made, ws, us, biases.reshape(4, -1)


@everywhere
def test_an_lstm_step_by_step(numbers: Numbers) -> None:
    steps, k = 3, 2
    made, ws, us, biases = lstm(numbers, steps, k)
    x = numbers_like((steps, 1, k * N), numbers)
    p = numbers.pointwise
    h = c = np.zeros((1, k * N), np.float32)
    expected = []
    for t in range(steps):
        sums = [
            unit.add(product(h, us[g], numbers), unit.add(product(x[t], ws[g], numbers), biases[g], p), p)
            for g in range(4)
        ]
        f, i, o = (unit.sigmoid(sums[g], p) for g in (0, 1, 3))
        c = unit.add(unit.mul(unit.tanh(sums[2], p), i, p), unit.mul(f, c, p), p)
        h = unit.mul(unit.tanh(c, p), o, p)
        expected.append(h)
    same(run(made, x=x)["h"], np.stack(expected))


# Single instructions


@everywhere
def test_pointwise_instructions_round_once_each(numbers: Numbers) -> None:
    p = numbers.pointwise
    x, a, b, m = (numbers_like((3, N), numbers, seed, 2) for seed in range(4))
    cases = [
        ([VvAdd(ADD, 0, 1)], unit.add(x, a, p)),
        ([VvASubB(ADD, 0, 1)], unit.round_to(x - a, p)),
        ([VvBSubA(ADD, 0, 1)], unit.round_to(a - x, p)),
        ([VvMax(ADD, 0, 1)], np.maximum(x, a)),
        ([VvMul(MUL, 0, 1)], unit.mul(x, m, p)),
        ([VRelu()], unit.relu(x)),
        ([VSigm()], unit.sigmoid(x, p)),
        ([VTanh()], unit.tanh(x, p)),
        ([VClip()], np.clip(x, -0.5, 1.5)),
        ([VTanh(), VvMul(MUL, 0, 1), VvAdd(ADD1, 0, 1), VSigm()],
         unit.sigmoid(unit.add(unit.mul(unit.tanh(x, p), m, p), b, p), p)),
    ]  # fmt: skip
    for stages, expected in cases:
        made = program(
            numbers,
            *chain(VRd(NET), *stages, VWr(NET), iterations_x=3, clip_low=-0.5, clip_high=1.5),
            vectors={ADD: a, ADD1: b, MUL: m},
            inputs=(Port("x", (3, N)),),
            outputs=(Port("y", (3, N)),),
        )
        same(run(made, x=x)["y"], expected)


def test_values_that_saturate_are_counted_by_chain_and_by_feed() -> None:
    x = np.full((2, N), 60000, np.float32)
    x[0, :3] = 1e6
    made = program(
        BRAINWAVE,
        *chain(VRd(NET), VvAdd(ADD, 0), VRelu(), VWr(NET), iterations_x=2),
        vectors={ADD: np.full((1, N), 10000, np.float32)},
        inputs=(Port("x", (2, N)),),
        outputs=(Port("y", (2, N)),),
    )
    state = initial_state(made, {"x": x})
    assert state.saturated_feeds == {"x": 3}
    assert (execute(made, state)["y"] == 65504).all()
    assert state.saturated == {(0, 12): 2 * N}


def moved(*instructions: Instruction, inputs: int = 12, outputs: int, numbers: Numbers = BRAINWAVE) -> Float32Array:
    """What a program gives to the network queue after vectors 0, 1, … of elements 32·i + j went into InitialVrf."""
    made = program(
        numbers,
        *chain(VRd(NET), VWr(VRF, 0, 1), iterations_x=inputs),
        *instructions,
        inputs=(Port("x", (inputs, N)),),
        outputs=(Port("y", (outputs, N)),),
    )
    return run(made, x=np.arange(inputs * N, dtype=np.float32).reshape(inputs, N))["y"]


def firsts(vectors: Float32Array) -> list[int]:
    """Which vectors of `moved` these are."""
    assert (np.diff(vectors) == 1).all()
    return [int(v) // N for v in vectors[:, 0]]


def test_iterations_step_through_memory_x_faster_than_y() -> None:
    send = chain(VRd(VRF, 1, 2, 5), VWr(NET), iterations_x=3, iterations_y=2)
    assert firsts(moved(*send, outputs=6)) == [1, 3, 5, 6, 8, 10]


def test_windows_read_inner_runs_first() -> None:
    two = chain(VRd2(VRF, 1), VWr(NET), columns=6, window_inner=2, window_middle=3, pitch_middle=4, pitch_inner=9)
    assert firsts(moved(*two, outputs=6)) == [1, 2, 5, 6, 9, 10]
    three = chain(
        VRd3(VRF, 0),
        VWr(NET),
        columns=8,
        window_inner=2,
        window_middle=2,
        window_outer=2,
        pitch_inner=2,
        pitch_middle=1,
        pitch_outer=6,
    )
    assert firsts(moved(*three, outputs=8)) == [0, 2, 1, 3, 6, 8, 7, 9]


def test_unrolled_elements_fill_vectors_and_the_rest_is_zero() -> None:
    unroll = chain(
        VUnroll(VRF, 3, 2, 100),
        VWr(NET),
        columns=2,
        iterations_x=2,
        iterations_y=2,
        window_inner=3,
        window_middle=4,
        window_outer=3,
        pitch_inner=1,
        pitch_middle=10,
        pitch_outer=60,
    )
    got = moved(*unroll, outputs=8).reshape(4, 2 * N)
    offsets = [60 * o + 10 * m + i for o in range(3) for m in range(4) for i in range(3)]
    for (y, x), row in zip([(0, 0), (0, 1), (1, 0), (1, 1)], got, strict=True):
        assert row[:36].tolist() == [3 + 2 * x + 100 * y + offset for offset in offsets]
        assert not row[36:].any()


def test_packed_elements_leave_their_neighbours() -> None:
    pack = chain(VRd(VRF, 0, 3), VPack(VRF, 7 * N + 5, 40), iterations_x=2, columns=2, width=36)
    got = moved(*pack, *chain(VRd(VRF, 7), VWr(NET), columns=4), outputs=4).reshape(-1)
    expected = np.arange(7 * N, 11 * N)
    expected[5:41], expected[45:81] = np.arange(36), np.arange(3 * N, 3 * N + 36)
    assert got.tolist() == expected.tolist()


def test_several_writes_give_the_vectors_to_all_of_them() -> None:
    multicast = chain(VRd(VRF, 2), VWr(Mem.DRAM, 100), VWr(NET), VWr(ADD, 4), VWr(NET), columns=2)
    sent = [*chain(VRd(Mem.DRAM, 101), VWr(NET)), *chain(VRd(ADD, 4), VWr(NET))]
    assert firsts(moved(*multicast, *sent, outputs=6)) == [2, 3, 2, 3, 3, 2]


def test_a_chain_may_overwrite_in_place_what_it_reads() -> None:
    double = [
        *chain(VRd(VRF), VWr(ADD, 0), columns=3),
        *chain(VRd(VRF, 0, 1), VvAdd(ADD, 0, 1), VWr(ADD, 0, 1), VWr(VRF, 0, 1), iterations_x=3),
        *chain(VRd(ADD), VWr(NET), columns=3),
        *chain(VRd(VRF), VWr(NET), columns=3),
    ]
    got = moved(*double, outputs=6).reshape(2, -1)
    assert (got == 2 * np.arange(3 * N)).all()


def test_a_chain_in_pieces_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = convolution(BRAINWAVE, 5, 2 * N, N)
    x = numbers_like((1, 2 * N, 5, 5), BRAINWAVE)
    whole = run(made, x=x)["y"]
    monkeypatch.setattr("fpgasim.npu.interpreter.PIECE", 3 * 18 * N)
    same(run(made, x=x)["y"], whole)


def test_tiles_go_from_dram_to_dram_and_overwrite_those_that_were_used() -> None:
    eye = blocked(np.eye(N, dtype=np.float32), BRAINWAVE)
    twice = blocked(2 * np.eye(N, dtype=np.float32), BRAINWAVE)
    stored = Operand(
        np.stack([eye.mantissas, twice.mantissas]), np.stack([eye.exponents, twice.exponents]), N, eye.fraction_bits, N
    )  # type: ignore[arg-type]
    multiply = chain(VRd(VRF), MvMul(3), VWr(NET))
    made = program(
        BRAINWAVE,
        *chain(VRd(NET), VWr(VRF)),
        *chain(MRd(Mem.DRAM, 0), MWr(Mem.MATRIX_RF, 3)),
        *multiply,
        *chain(MRd(Mem.DRAM, 1), MWr(Mem.DRAM, 50)),
        *chain(MRd(Mem.DRAM, 50), MWr(Mem.MATRIX_RF, 3)),
        *multiply,
        tiles={Mem.DRAM: stored},
        inputs=(Port("x", (1, N)),),
        outputs=(Port("y", (2, N)),),
    )
    x = np.ones((1, N), np.float32)
    same(run(made, x=x)["y"], np.concatenate([x, 2 * x]))


def test_a_packed_port_fills_up_each_image_only() -> None:
    shape = (2, 3, 5, 4)
    made = program(
        BRAINWAVE,
        *chain(VRd(NET), VWr(NET), iterations_x=4),
        inputs=(Port("x", shape, packed=True),),
        outputs=(Port("y", shape, packed=True),),
    )
    x = numbers_like(shape, BRAINWAVE)
    assert made.inputs[0].vectors(N) == 4
    same(run(made, x=x)["y"], x)
    queued = initial_state(made, {"x": x}).queued.reshape(2, -1)
    assert np.array_equal(queued[:, :60], x.transpose(0, 2, 3, 1).reshape(2, 60))
    assert not queued[:, 60:].any()


# What only a run can refuse


EYE = native_tiles(blocked(np.eye(N, dtype=np.float32), BRAINWAVE), N)


def refusal(*instructions: Instruction) -> str:
    """What the interpreter says of a program with one input vector, one output vector and tile 0 of DRAM."""
    made = program(
        BRAINWAVE,
        *instructions,
        vectors={ADD: np.zeros((1, N), np.float32)},
        tiles={Mem.DRAM: EYE},
        inputs=(Port("x", (1, N)),),
        outputs=(Port("y", (1, N)),),
    )
    with pytest.raises(ProgramError) as error:
        run(made, x=np.zeros((1, N), np.float32))
    return str(error.value)


@pytest.mark.parametrize(
    ("instructions", "where", "what"),
    [
        (chain(VRd(VRF, 12), VWr(NET)), 12, "vector 12 of initial_vrf was never written"),
        (chain(VRd(ADD, 0, 1), VWr(NET), iterations_x=2), 12, "vector 1 of addsub_vrf_0 was never written"),
        (chain(VRd(NET), VvAdd(ADD, 1), VWr(NET)), 13, "vector 1 of addsub_vrf_0 was never written"),
        (chain(VUnroll(VRF, 5), VWr(NET), window_inner=3), 12, "element 5 of initial_vrf was never written"),
        (chain(VRd(NET), MvMul(1), VWr(NET)), 13, "tile 1 of matrix_rf was never written"),
        (chain(MRd(Mem.DRAM, 1), MWr(Mem.MATRIX_RF)), 12, "tile 1 of dram was never written"),
        (chain(VRd(NET), VWr(NET), iterations_x=3), 12, "the network queue has 1 vectors and 3 are read"),
        (
            chain(VRd(NET), VClip(), VWr(NET), clip_low=0.1),
            14,
            "its bound 0.100000001 is no number of the pointwise type fp16",
        ),
    ],
)
def test_an_instruction_that_misses_something_is_named(instructions: list[Instruction], where: int, what: str) -> None:
    assert refusal(*instructions) == f"block 0, word {where} ({instructions[where]}): {what}"


def test_a_vector_that_was_written_in_part_cannot_be_read() -> None:
    said = refusal(*chain(VRd(NET), VPack(VRF, 5), width=3), *chain(VRd(VRF), VWr(NET)))
    assert said == "block 0, word 27 (v_rd mem=initial_vrf): vector 0 of initial_vrf was never written"


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (chain(VRd(NET), VWr(VRF)), "has given 0 vectors to the network queue; its outputs are 1"),
        (chain(VRd(NET), VWr(NET), VWr(NET)), "has given 2 vectors to the network queue; its outputs are 1"),
        (chain(VRd(ADD), VWr(NET)), "has ended and 1 vectors of its inputs are still in the network queue"),
    ],
)
def test_a_program_that_does_not_fit_its_ports_is_refused(instructions: list[Instruction], message: str) -> None:
    assert refusal(*instructions) == f"program 'by hand' {message}"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "feed 'x' is missing; program 'by hand' takes x"),
        ({"x": np.zeros((4, 96)), "z": 0}, "feed 'z' is no input; program 'by hand' takes x"),
        ({"x": np.zeros((3, 96))}, "feed 'x' is float64 of shape (3, 96); numbers of (4, 96) would do"),
        (None, "feeds is a NoneType; a mapping from input name to array would do"),
        ({5: 0}, "feed 5 is no input; program 'by hand' takes x"),
        (
            {"x": [[1.0], [1.0, 2.0]]},
            "feed 'x' is no array (setting an array element with a sequence. The requested array has an inhomogeneous "
            "shape after 1 dimensions. The detected shape was (2,) + inhomogeneous part.); numbers of (4, 96) would do",
        ),
        ({"x": np.zeros((4, 96), str)}, "feed 'x' is <U1 of shape (4, 96); numbers of (4, 96) would do"),
    ],
)
def test_a_feed_that_does_not_fit_is_named(feeds: dict[str, Array], message: str) -> None:
    with pytest.raises(InputError) as error:
        initial_state(dense(BRAINWAVE)[0], feeds)
    assert str(error.value) == message


def test_a_state_does_not_change_its_program() -> None:
    made, _, bias = dense(BRAINWAVE)
    state = initial_state(made, {"x": np.zeros((4, 96))})
    state.vectors[ADD].values[:] = 7
    assert np.array_equal(made.vectors[ADD].reshape(-1), bias)
