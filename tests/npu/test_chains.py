"""Words become chains, and what the hardware cannot form is refused by name."""

import dataclasses

import numpy as np
import pytest

from fpgasim.errors import ProgramError
from fpgasim.npu.chains import (
    MAX_CHAIN_VECTORS,
    Dimension,
    MatrixChain,
    Op,
    Span,
    Tiles,
    VectorChain,
    decode_chains,
    program_chains,
    read_addresses,
    written_addresses,
)
from fpgasim.npu.isa import (
    START,
    EndChain,
    Instruction,
    Mem,
    MRd,
    MvMul,
    MWr,
    Register,
    SWr,
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
    VvMax,
    VvMul,
    VWr,
    encode,
)
from fpgasim.npu.programs import Program

from .engine import DEVICE, NUMBERS, N, block, chain, sets

ADD, ADD1, MUL, MUL1 = Mem.ADDSUB_VRF_0, Mem.ADDSUB_VRF_1, Mem.MULTIPLY_VRF_0, Mem.MULTIPLY_VRF_1
VRF, NET = Mem.INITIAL_VRF, Mem.NET_QUEUE


def vector_chain(*instructions: Instruction) -> VectorChain:
    """The only chain of `instructions`."""
    ((found,), _) = decode_chains([encode(insn) for insn in instructions], DEVICE)
    assert isinstance(found, VectorChain)
    return found


def refusal(*instructions: Instruction) -> str:
    with pytest.raises(ProgramError) as error:
        decode_chains([encode(insn) for insn in instructions], DEVICE, block=2)
    return str(error.value)


def test_a_chain_of_everything() -> None:
    found = vector_chain(
        *sets(iterations_x=3, iterations_y=2, rows=2, columns=4, pixels=2, clip_high=6, window_inner=9),
        VRd(VRF, 10, 4, 20),
        MvMul(7),
        VvMul(MUL, 0, 2, 6),
        VvMax(ADD, 5),
        VClip(),
        VvAdd(ADD1, 20, 2, 6),
        VWr(ADD1, 20, 2, 6),
        VWr(VRF, 100, 2, 6),
        VWr(NET),
        VWr(Mem.DRAM, 50, 2, 6),
        EndChain(),
    )
    assert (found.at, found.words) == (7, 11)
    assert found.read == VRd(VRF, 10, 4, 20)
    assert found.tiles == Tiles(7, rows=2, columns=4)
    assert found.tiles.span == Span(Mem.MATRIX_RF, 7, 15)
    assert found.ops == (
        Op(VvMul(MUL, 0, 2, 6), 0),
        Op(VvMax(ADD, 5), 0),
        Op(VClip(), 0),
        Op(VvAdd(ADD1, 20, 2, 6), 1),
    )
    assert [write.mem for write in found.writes] == [ADD1, VRF, NET, Mem.DRAM]
    assert (found.iterations, found.positions, found.rows, found.columns) == ((3, 2), 6, 2, 4)
    assert found.window == (Dimension(1, 1), Dimension(1, 1), Dimension(4, 1))
    assert (found.width, found.pixels) == (0, 2)
    assert found.clip == (-np.inf, 6.0)
    assert found.reads == (Span(VRF, 10, 42),)
    assert found.operands == (Span(MUL, 0, 12), Span(ADD, 5, 7), Span(ADD1, 20, 32))
    assert found.written == (Span(ADD1, 20, 32), Span(VRF, 100, 112), Span(Mem.DRAM, 50, 62))
    assert (found.taken, found.given, found.dram_read, found.dram_written) == (0, 12, 0, 12)


def test_a_matrix_chain() -> None:
    words = [encode(insn) for insn in chain(MRd(Mem.DRAM, 9), MWr(Mem.MATRIX_RF, 3), rows=2, columns=5)]
    found, registers = decode_chains(words, DEVICE)
    assert found == (MatrixChain(12, 3, source=9, mem=Mem.MATRIX_RF, target=3, tiles=10),)
    assert found[0].written == Span(Mem.MATRIX_RF, 3, 13)
    assert registers == {**START, Register.ROWS: 2, Register.COLUMNS: 5}
    to_dram = chain(MRd(Mem.DRAM, 9), MWr(Mem.DRAM, 3))
    ((moved,), _) = decode_chains([encode(insn) for insn in to_dram], DEVICE)
    assert moved.written is None


def test_windows_reach_as_far_as_their_pitches() -> None:
    window = {"window_inner": 2, "window_middle": 3, "window_outer": 4, "pitch_inner": 5, "pitch_middle": 7}
    three = vector_chain(*chain(VRd3(VRF, 1, 1), VWr(NET), columns=24, iterations_x=3, pitch_outer=20, **window))
    assert three.reads == (Span(VRF, 1, 1 + 2 + 5 + 14 + 60 + 1),)
    assert three.window == (Dimension(4, 20), Dimension(3, 7), Dimension(2, 5))
    two = vector_chain(*chain(VRd2(VRF, 1, 1), VWr(NET), columns=6, iterations_x=3, pitch_outer=20, **window))
    assert two.reads == (Span(VRF, 1, 1 + 2 + 1 + 14 + 1),)
    assert two.window == (Dimension(1, 1), Dimension(3, 7), Dimension(2, 1))
    unrolled = vector_chain(*chain(VUnroll(VRF, N - 1, 1), VWr(NET), iterations_x=3, pitch_outer=20, **window))
    assert unrolled.reads == (Span(VRF, 0, (N - 1 + 2 + 5 + 14 + 60) // N + 1),)
    assert unrolled.columns == 1
    packed = vector_chain(*chain(VRd(NET), VPack(VRF, N - 1, 50), columns=2, iterations_x=3, width=40))
    assert packed.written == (Span(VRF, 0, (N - 1 + 100 + 39) // N + 1),)
    assert (packed.taken, packed.width) == (6, 40)


def test_spans_are_those_of_the_addresses() -> None:
    found = vector_chain(
        *chain(
            VRd3(VRF, 3, 1, 30),
            MvMul(0),
            VWr(ADD, 7, 2, 20),
            rows=2,
            columns=12,
            iterations_x=4,
            iterations_y=3,
            window_inner=2,
            window_middle=3,
            window_outer=2,
            pitch_middle=4,
            pitch_outer=40,
        )
    )
    read, written = read_addresses(found), written_addresses(found, found.writes[0])
    assert read.shape == (12, 12)
    assert written.shape == (12, 2)
    assert found.reads == (Span(VRF, read.min(), read.max() + 1),)
    assert found.written == (Span(ADD, written.min(), written.max() + 1),)
    assert read[5].tolist() == [3 + 1 + 30 + o + m + i for o in (0, 40) for m in (0, 4, 8) for i in (0, 1)]
    assert written[5].tolist() == [29, 30]


def test_two_accesses_of_a_memory_are_one_range() -> None:
    found = vector_chain(*chain(VRd(NET), VWr(VRF, 5), VWr(VRF, 100), VWr(ADD, 3)))
    assert found.written == (Span(VRF, 5, 101), Span(ADD, 3, 4))


def test_activations_take_the_first_mfu_that_is_free_from_the_one_reached_on() -> None:
    def units(*stages: Instruction) -> list[int]:
        return [op.mfu for op in vector_chain(*chain(VRd(NET), *stages, VWr(NET))).ops]

    assert units(VRelu(), VSigm()) == [0, 1]
    assert units(VvAdd(ADD), VRelu(), VvMul(MUL), VTanh()) == [0, 0, 0, 1]
    assert units(VvAdd(ADD1), VRelu()) == [1, 1]
    assert units(VRelu(), VvMul(MUL), VvAdd(ADD), VvAdd(ADD1), VvMul(MUL1), VSigm()) == [0, 0, 0, 1, 1, 1]


def test_registers_are_kept_from_chain_to_chain_and_go_in_and_out() -> None:
    send = [encode(insn) for insn in (VRd(VRF), VWr(NET), EndChain())]
    words = [encode(SWr(Register.COLUMNS, 3)), *send, *send]
    (first, second), registers = decode_chains(words, DEVICE)
    assert isinstance(first, VectorChain)
    assert isinstance(second, VectorChain)
    assert (first.columns, second.columns, second.at) == (3, 3, 4)
    ((third,), _) = decode_chains(send, DEVICE, registers)
    assert isinstance(third, VectorChain)
    assert third.columns == 3


def test_a_repeated_block_must_be_the_same_in_every_turn() -> None:
    send = [VRd(NET), VWr(NET), EndChain()]
    one, three = sets(columns=1), sets(columns=3)

    def chains(*instructions: Instruction, repeat: int) -> int:
        blocks = (block(*sets(rows=2)), block(*instructions, repeat=repeat))
        return len(program_chains(Program("p", DEVICE, NUMBERS["fp32"], blocks))[1])

    assert chains(*send, *three, *send, repeat=1) == 2
    assert chains(*one, *send, *three, *send, repeat=5) == 2
    assert chains(*sets(width=7), *send, repeat=2) == 1  # no chain uses it
    with pytest.raises(ProgramError) as error:
        chains(*send, *three, *send, repeat=5)
    assert str(error.value) == (
        "block 1, word 0 (v_rd mem=net_queue): the chain is another one in the block's second turn (columns 1 -> 3); "
        "set its registers in the block"
    )


def test_a_chain_may_write_in_place_and_between_what_it_reads() -> None:
    vector_chain(*chain(VRd(VRF, 0, 1), VvAdd(ADD, 5, 2), VWr(ADD, 5, 2), iterations_x=9))
    vector_chain(*chain(VRd(VRF), MvMul(), VvAdd(ADD, 5), VWr(ADD, 5), rows=3, columns=2))
    vector_chain(*chain(VRd(VRF, 3, 2), VRelu(), VWr(VRF, 3, 2), columns=2, iterations_x=9))
    vector_chain(*chain(VRd(VRF, 0, 2), VWr(VRF, 1, 2), iterations_x=9))
    vector_chain(*chain(VRd(VRF, 0, 2), MvMul(), VWr(VRF, 1, 2), iterations_x=9))
    vector_chain(*chain(VRd(VRF, 2), VPack(VRF, 2 * N), width=7))
    vector_chain(*chain(VRd(NET), VPack(ADD, 5, 10), VWr(ADD, 1, 1), width=10, iterations_x=2))


@pytest.mark.parametrize(
    ("instructions", "index", "vector", "mem"),
    [
        (chain(VRd(VRF, 0, 1), VWr(VRF, 1, 1), iterations_x=3), 0, 1, VRF),  # a later iteration reads it
        (chain(VRd(VRF, 1, 1), VWr(VRF, 0, 1), iterations_x=3), 0, 1, VRF),  # an earlier one does
        (chain(VRd(VRF), VWr(VRF, 2), columns=4), 0, 2, VRF),  # the same one does, as another vector
        (chain(VRd(VRF), VvAdd(ADD, 2), VWr(ADD, 8), columns=9), 1, 8, ADD),
        (chain(VRd(VRF, 0, 1), VvAdd(ADD, 7), VWr(ADD, 7, 1), iterations_x=3), 1, 7, ADD),  # a bias
        (chain(VRd(VRF), MvMul(), VWr(VRF)), 0, 0, VRF),  # never in place behind a product
        (chain(VRd2(VRF, 0), MvMul(), VWr(VRF, 5), columns=6, window_middle=6), 0, 5, VRF),
        (chain(VRd2(VRF, 0, 1), VWr(VRF, 7), columns=2, window_middle=2, pitch_middle=7), 0, 7, VRF),
        (chain(VUnroll(VRF, 5), VWr(VRF, 1), columns=2, window_inner=N + 9), 0, 1, VRF),
        (chain(VRd(VRF), VPack(VRF, 2), columns=2, width=40), 0, 1, VRF),
        (chain(VRd(VRF, 0, 1, 5), VWr(VRF, 5, 1, 5), iterations_x=4, iterations_y=2), 0, 5, VRF),
    ],
)
def test_a_chain_must_not_write_what_it_reads(
    instructions: list[Instruction], index: int, vector: int, mem: Mem
) -> None:
    at = [i for i, insn in enumerate(instructions) if not isinstance(insn, SWr)][index]
    assert refusal(*instructions) == (
        f"block 2, word {at} ({instructions[at]}): vector {vector} of {mem.name.lower()} is also written by the chain; "
        "only in place may it be, its i-th vector over the i-th of an operand or, without mv_mul, of the read"
    )


@pytest.mark.parametrize(
    ("instructions", "index", "unit"),
    [
        (chain(VRd(NET), VWr(ADD), iterations_x=2), 1, "a vector"),
        (chain(VRd(NET), VWr(ADD, 0, 1), VWr(ADD, 3, 1), columns=2, iterations_x=3), 1, "a vector"),
        (chain(VRd(NET), VWr(ADD, 0), VWr(VRF), VWr(ADD, 2), columns=3), 3, "a vector"),
        (chain(VRd(NET), VPack(ADD, 0, 3), iterations_x=2, width=4), 1, "an element"),
        (chain(VRd(NET), VWr(ADD, 1), VPack(ADD, N - 3), width=4), 2, "an element"),
    ],
)
def test_a_chain_must_not_write_an_element_twice(instructions: list[Instruction], index: int, unit: str) -> None:
    at = [i for i, insn in enumerate(instructions) if not isinstance(insn, SWr)][index]
    assert refusal(*instructions) == (
        f"block 2, word {at} ({instructions[at]}): the chain writes {unit} of addsub_vrf_0 twice"
    )


END = EndChain()


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        # form
        ([VRd(VRF)], "word 0 (v_rd mem=initial_vrf): the block ends inside a chain; end_chain is missing"),
        ([END], "word 0 (end_chain): a chain begins with a v_rd or m_rd"),
        ([VWr(NET), END], "word 0 (v_wr mem=net_queue): a chain begins with a v_rd or m_rd"),
        ([VRd(VRF), END], "word 1 (end_chain): the chain writes nothing; v_wr must come before"),
        (
            [VRd(VRF), *sets(rows=1), VWr(NET), END],
            "word 1 (s_wr register=rows value=1): stands inside a chain; end_chain must come first",
        ),
        *(
            (
                [VRd(VRF), *wrong, END],
                f"word {len(wrong)} ({wrong[-1]}): cannot stand here; a vector chain is one read, at most one mv_mul, "
                "pointwise instructions, writes, end_chain",
            )
            for wrong in ([VRd(VRF)], [VWr(NET), VRelu()], [MWr(Mem.MATRIX_RF)], [MvMul(), VWr(NET), VvAdd(ADD)])
        ),
        *(
            (
                [VRd(VRF), *before, MvMul(), VWr(NET), END],
                f"word {len(before) + 1} (mv_mul): a chain has at most one mv_mul, and it comes right behind the read",
            )
            for before in ([MvMul()], [VRelu()], [VWr(NET)])
        ),
        ([MRd(Mem.DRAM), END], "word 1 (end_chain): a matrix chain is m_rd, m_wr, end_chain"),
        ([MRd(Mem.DRAM), VWr(NET), END], "word 1 (v_wr mem=net_queue): a matrix chain is m_rd, m_wr, end_chain"),
        (
            [MRd(Mem.DRAM), MWr(Mem.DRAM), MWr(Mem.MATRIX_RF), END],
            "word 1 (m_wr mem=dram): a matrix chain is m_rd, m_wr, end_chain",
        ),
        # memories
        ([MRd(NET), MWr(Mem.MATRIX_RF), END], "word 0 (m_rd mem=net_queue): dram would do"),
        ([MRd(Mem.DRAM), MWr(VRF), END], "word 1 (m_wr mem=initial_vrf): matrix_rf or dram would do"),
        (
            [MRd(Mem.DRAM), MWr(Mem.MATRIX_RF, 80), END],
            "word 1 (m_wr mem=matrix_rf address=80): tiles 80 to 80 do not fit into the 80 of matrix_rf",
        ),
        (
            [*sets(rows=9, columns=9), MRd(Mem.DRAM), MWr(Mem.MATRIX_RF), END],
            "word 3 (m_wr mem=matrix_rf): tiles 0 to 80 do not fit into the 80 of matrix_rf",
        ),
        (
            [*sets(rows=2), MRd(Mem.DRAM, (1 << 24) - 1), MWr(Mem.MATRIX_RF), END],
            "word 1 (m_rd mem=dram address=16777215): tiles 16777215 to 16777216 do not fit into the 16777216 of dram",
        ),
        (
            [*sets(rows=3, columns=3), VRd(VRF), MvMul(72), VWr(NET), END],
            "word 3 (mv_mul address=72): tiles 72 to 80 do not fit into the 80 of matrix_rf",
        ),
        (
            [VRd(VRF, 600), VWr(NET), END],
            "word 0 (v_rd mem=initial_vrf address=600): vectors 600 to 600 do not fit into the 600 of initial_vrf",
        ),
        (
            [*sets(iterations_x=3, iterations_y=4, columns=2), VRd(NET), VWr(ADD, 200, 20, 20), END],
            "word 4 (v_wr mem=addsub_vrf_0 address=200 step_x=20 step_y=20): vectors 200 to 301 do not fit into the "
            "300 of addsub_vrf_0",
        ),
        (
            [*sets(columns=2, iterations_x=2), VRd(VRF), VvMul(MUL, 38, 1), VWr(NET), END],
            "word 3 (vv_mul mem=multiply_vrf_0 address=38 step_x=1): vectors 38 to 40 do not fit into the 40 of "
            "multiply_vrf_0",
        ),
        (
            [*sets(window_inner=3), VUnroll(VRF, 600 * N - 2), VWr(NET), END],
            f"word 1 (v_unroll mem=initial_vrf address={600 * N - 2}): elements {600 * N - 2} to {600 * N} do not fit "
            f"into the {600 * N} of initial_vrf",
        ),
        (
            [VRd(VRF), VWr(Mem.ADDSUB_VRF_2), END],
            "word 1 (v_wr mem=addsub_vrf_2): vectors 0 to 0 do not fit into the 0 of addsub_vrf_2",
        ),
        (
            [VRd(Mem.MATRIX_RF), VWr(NET), END],
            "word 0 (v_rd mem=matrix_rf): vectors 0 to 0 do not fit into the 0 of matrix_rf",
        ),
        *(
            ([*before, insn, *behind, END], f"word {len(before)} ({insn}): net_queue goes with v_rd and v_wr alone, "
             "and has no address and no steps")
            for before, insn, behind in (
                ([], VRd2(NET), [VWr(VRF)]),
                ([], VRd(NET, 1), [VWr(VRF)]),
                ([VRd(VRF)], VWr(NET, 0, 1), []),
                ([VRd(VRF)], VPack(NET), []),
            )
        ),
        # registers
        *(
            (
                [*sets(**{name: value}), VRd(VRF), MvMul(), VWr(NET), END],
                f"word {at} ({insn}): register {name} is {value}; 1 to {high} would do",
            )
            for name, value, at, insn, high in (
                ("rows", 0, 2, "mv_mul", MAX_CHAIN_VECTORS),
                ("columns", 0, 1, "v_rd mem=initial_vrf", MAX_CHAIN_VECTORS),
                ("iterations_x", 0, 1, "v_rd mem=initial_vrf", MAX_CHAIN_VECTORS),
                ("iterations_y", 1 << 25, 1, "v_rd mem=initial_vrf", MAX_CHAIN_VECTORS),
                ("pixels", 5, 2, "mv_mul", 4),
            )
        ),
        (
            [*sets(width=33), VRd(VRF), VPack(ADD), END],
            "word 2 (v_pack mem=addsub_vrf_0): register width is 33; 1 to 32 would do",
        ),
        (
            [*sets(window_middle=0), VRd2(VRF), VWr(NET), END],
            "word 1 (v_rd2 mem=initial_vrf): register window_middle is 0; 1 to 16777216 would do",
        ),
        (
            [*sets(columns=5, window_inner=2, window_middle=3), VRd2(VRF), VWr(NET), END],
            "word 3 (v_rd2 mem=initial_vrf): the window is 6 vectors and register columns 5; they must be equal",
        ),
        (
            [*sets(window_inner=33), VUnroll(VRF), VWr(NET), END],
            "word 1 (v_unroll mem=initial_vrf): the window is 2 vectors and register columns 1; they must be equal",
        ),
        (
            [*sets(iterations_x=5000, iterations_y=5000), VRd(NET), VWr(NET), END],
            "word 2 (v_rd mem=net_queue): 5000·5000 iterations of 1 vectors are more than 16777216",
        ),
        (
            [*sets(clip_low=float("nan")), VRd(NET), VClip(), VWr(NET), END],
            "word 2 (v_clip): its bounds are nan and inf; numbers would do",
        ),
        # multifunction units
        (
            [VRd(VRF), VvAdd(MUL), VWr(NET), END],
            "word 1 (vv_add mem=multiply_vrf_0): its operand must be in addsub_vrf_0 or addsub_vrf_1",
        ),
        (
            [VRd(VRF), VvMul(VRF), VWr(NET), END],
            "word 1 (vv_mul mem=initial_vrf): its operand must be in multiply_vrf_0 or multiply_vrf_1",
        ),
        (
            [VRd(VRF), VvMul(Mem.MULTIPLY_VRF_2), VWr(NET), END],
            "word 1 (vv_mul mem=multiply_vrf_2): its operand must be in multiply_vrf_0 or multiply_vrf_1",
        ),
        (
            [VRd(VRF), VvAdd(ADD1), VvMul(MUL), VWr(NET), END],
            "word 2 (vv_mul mem=multiply_vrf_0): MFU 0 comes before MFU 1, which the chain has reached",
        ),
        (
            [VRd(VRF), VvAdd(ADD), VvASubB(ADD), VWr(NET), END],
            "word 2 (vv_a_sub_b mem=addsub_vrf_0): the add unit of MFU 0 has done an instruction of this chain already",
        ),
        (
            [VRd(VRF), VRelu(), VSigm(), VvAdd(ADD), VWr(NET), END],
            "word 3 (vv_add mem=addsub_vrf_0): MFU 0 comes before MFU 1, which the chain has reached",
        ),
        (
            [VRd(VRF), VRelu(), VSigm(), VTanh(), VWr(NET), END],
            "word 3 (v_tanh): none of the 2 MFUs has an activation unit left for it",
        ),
    ],
)  # fmt: skip
def test_what_the_hardware_cannot_form_is_refused(instructions: list[Instruction], message: str) -> None:
    assert refusal(*instructions) == f"block 2, {message}"


def test_a_word_that_is_no_instruction_is_named_with_its_place() -> None:
    with pytest.raises(ProgramError) as error:
        decode_chains([encode(VRd(VRF)), 0], DEVICE, block=4)
    assert str(error.value).startswith("block 4, word 1: word 0x0000000000000000: no instruction has opcode 0")


def test_the_number_of_mfus_decides_what_fits() -> None:
    four = dataclasses.replace(DEVICE, mfus=4)
    words = [encode(insn) for insn in chain(VRd(VRF), VRelu(), VSigm(), VTanh(), VvAdd(Mem.ADDSUB_VRF_3), VWr(NET))]
    ((found,), _) = decode_chains(words, four)
    assert isinstance(found, VectorChain)
    assert [op.mfu for op in found.ops] == [0, 1, 2, 3]
