"""Instruction words: every instruction there and back, and what is refused."""

import dataclasses
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.errors import ProgramError
from fpgasim.npu.isa import (
    INSTRUCTIONS,
    START,
    EndChain,
    Instruction,
    Mem,
    MvMul,
    Register,
    SWr,
    VRd,
    VvAdd,
    addsub_vrf,
    bits_float,
    decode,
    encode,
    fields,
    float_bits,
    multiply_vrf,
)


def instructions(cls: type[Instruction]) -> Any:
    """Any instruction of `cls`."""
    hints = get_type_hints(cls)
    kinds = {
        f.name: st.sampled_from(hints[f.name])
        if hints[f.name] in (Mem, Register)
        else st.integers(0, (1 << f.metadata["width"]) - 1)
        for f in dataclasses.fields(cls)
    }
    return st.builds(cls, **kinds)


@pytest.mark.parametrize("cls", INSTRUCTIONS.values(), ids=lambda cls: cls.mnemonic)
@settings(max_examples=30)
@given(data=st.data())
def test_an_instruction_becomes_a_word_and_the_same_instruction_again(
    cls: type[Instruction], data: st.DataObject
) -> None:
    insn = data.draw(instructions(cls))
    word = encode(insn)
    assert 0 <= word < 1 << 64
    again = decode(word)
    assert again == insn
    assert type(again) is cls


@given(st.integers(0, (1 << 64) - 1))
def test_a_word_is_refused_or_is_the_only_one_of_its_instruction(word: int) -> None:
    try:
        insn = decode(word)
    except ProgramError:
        return
    assert encode(insn) == word


def test_the_layout_is_that_of_the_manual() -> None:
    assert encode(VRd(Mem.DRAM, address=5, step_x=3, step_y=7)) == 1 | 2 << 6 | 5 << 10 | 3 << 34 | 7 << 48
    assert encode(MvMul(9)) == 9 | 9 << 6
    assert encode(SWr(Register.PIXELS, 4)) == 19 | 11 << 6 | 4 << 12
    assert encode(EndChain()) == 20
    assert list(INSTRUCTIONS) == list(range(1, 21))


def test_fields_do_not_overlap_and_fit_into_a_word() -> None:
    for cls in INSTRUCTIONS.values():
        at = 6
        for field in fields(cls):
            assert field.at == at
            at += field.width
        assert at <= 64


@pytest.mark.parametrize(
    ("insn", "message"),
    [
        (MvMul(1 << 24), "mv_mul.address=16777216 does not fit in 24 bits"),
        (MvMul(-1), "mv_mul.address=-1 does not fit in 24 bits"),
        (VRd(Mem.DRAM, step_x=1 << 14), "v_rd.step_x=16384 does not fit in 14 bits"),
        (SWr(Register.ROWS, 1 << 32), "s_wr.value=4294967296 does not fit in 32 bits"),
        (MvMul(1.5), "mv_mul.address=1.5 is no whole number"),  # type: ignore[arg-type]
        (MvMul(True), "mv_mul.address=True is no whole number"),
    ],
)
def test_a_field_that_does_not_fit_is_named(insn: Instruction, message: str) -> None:
    with pytest.raises(ProgramError) as error:
        encode(insn)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (0, "word 0x0000000000000000: no instruction has opcode 0; there are 1 to 20"),
        (21, "word 0x0000000000000015: no instruction has opcode 21; there are 1 to 20"),
        (20 | 1 << 6, "word 0x0000000000000054: end_chain does not use all bits that are set"),
        (9 | 1 << 30, "word 0x0000000040000009: mv_mul does not use all bits that are set"),
        (1 | 12 << 6, "word 0x0000000000000301: v_rd has no mem 12"),
        (19 | 14 << 6, "word 0x0000000000000393: s_wr has no register 14"),
        (20 | 1 << 64, "word 0x10000000000000014 does not fit in 64 bits"),
    ],
)
def test_a_word_that_is_no_instruction_is_refused(word: int, message: str) -> None:
    with pytest.raises(ProgramError) as error:
        decode(word)
    assert str(error.value) == message


def test_instructions_are_equal_only_where_their_kind_is() -> None:
    assert VRd(Mem.INITIAL_VRF, 1) != VvAdd(Mem.INITIAL_VRF, 1)
    assert len({VRd(Mem.INITIAL_VRF, 1), VRd(Mem.INITIAL_VRF, 1), EndChain(), EndChain()}) == 2


def test_an_instruction_prints_as_assembly_without_what_is_zero() -> None:
    assert str(VRd(Mem.INITIAL_VRF, 12, 1)) == "v_rd mem=initial_vrf address=12 step_x=1"
    assert str(EndChain()) == "end_chain"
    assert str(SWr(Register.CLIP_HIGH, float_bits(6.0))) == "s_wr register=clip_high value=6.0"
    assert str(SWr(Register.CLIP_HIGH, 0x7FC00001)) == "s_wr register=clip_high value=0x7fc00001"


def test_each_mfu_has_its_two_register_files() -> None:
    for m in range(4):
        assert (addsub_vrf(m).mfu, multiply_vrf(m).mfu) == (m, m)
        assert (addsub_vrf(m).is_addsub, multiply_vrf(m).is_addsub) == (True, False)
        assert (addsub_vrf(m).is_multiply, multiply_vrf(m).is_multiply) == (False, True)
    assert [mem for mem in Mem if mem.mfu is None] == [Mem.INITIAL_VRF, Mem.NET_QUEUE, Mem.DRAM, Mem.MATRIX_RF]


def test_registers_start_at_one_and_the_bounds_of_a_clip_at_infinity() -> None:
    bounds = {Register.CLIP_LOW: float("-inf"), Register.CLIP_HIGH: float("inf")}
    for register, value in START.items():
        assert bits_float(value) == bounds[register] if register in bounds else value == 1
    assert list(START) == list(Register)
