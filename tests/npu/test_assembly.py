"""Assembly text there and back, its errors, and the page that is made from the instructions."""

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fpgasim.errors import ProgramError
from fpgasim.npu.assembly import assemble, disassemble, manual
from fpgasim.npu.isa import (
    FLOAT_REGISTERS,
    INSTRUCTIONS,
    EndChain,
    Instruction,
    Mem,
    Register,
    SWr,
    VRd,
    VWr,
    encode,
    float_bits,
)
from fpgasim.npu.programs import Block

from .test_isa import instructions

PAGE = Path(__file__).parents[2] / "docs" / "isa.md"


@pytest.mark.parametrize("cls", INSTRUCTIONS.values(), ids=lambda cls: cls.mnemonic)
@settings(max_examples=30)
@given(data=st.data())
def test_an_instruction_is_the_same_after_printing_and_reading(cls: type[Instruction], data: st.DataObject) -> None:
    insn = data.draw(instructions(cls))
    assert assemble(str(insn)) == (Block((encode(insn),)),)


@given(st.sampled_from(sorted(FLOAT_REGISTERS)), st.integers(0, (1 << 32) - 1))
def test_every_bound_of_a_clip_is_the_same_after_printing_and_reading(register: Register, value: int) -> None:
    insn = SWr(register, value)
    assert assemble(str(insn)) == (Block((encode(insn),)),)


words = st.integers(0, (1 << 64) - 1) | st.one_of([instructions(cls) for cls in INSTRUCTIONS.values()]).map(encode)
blocks = st.builds(
    Block,
    st.lists(words, max_size=5).map(tuple),
    st.integers(1, 1 << 40),
    st.text('a "\\#{}é\n\u2028\ud800', max_size=8),
    st.none() | st.integers(0, 1 << 60),
)


@settings(max_examples=60)
@given(st.lists(blocks, max_size=4).map(tuple))
def test_any_blocks_are_the_same_after_printing_and_reading(found: tuple[Block, ...]) -> None:
    assert assemble(disassemble(found)) == found


def test_text_with_comments_loose_instructions_and_every_header() -> None:
    send = (encode(VRd(Mem.INITIAL_VRF, 31, 2)), encode(VWr(Mem.NET_QUEUE)), encode(EndChain()))
    body = "v_rd  step_x=2 mem=initial_vrf\taddress=0x1F # read\n\n   v_wr mem=net_queue#send\nend_chain\n"
    text = (
        f"# all of it\n{body}repeat 3 {{\n{body}}}\n{body}"
        f'block "a # \\"b\\"" repeat 2 macs 5 {{ # "c"\n{body}  }}  # end\nblock{{\n}}\n{{\n0x14\n20\n}}\nmacs 7 {{\n}}'
    )
    end = encode(EndChain())
    assert assemble(text) == (
        Block(send),
        Block(send, 3),
        Block(send),
        Block(send, 2, 'a # "b"', 5),
        Block(()),
        Block((end, end)),
        Block((), macs=7),
    )
    assert assemble("") == assemble("  \n# nothing") == ()


@pytest.mark.parametrize(
    ("text", "bits"),
    [("6.0", float_bits(6.0)), ("-inf", 0xFF800000), ("1e-3", float_bits(1e-3)), ("0x40c00000", 0x40C00000), ("5", 5)],
)
def test_bounds_of_a_clip_are_numbers_or_bits(text: str, bits: int) -> None:
    assert assemble(f"s_wr register=clip_low value={text}") == (Block((encode(SWr(Register.CLIP_LOW, bits)),)),)


def test_zeros_before_a_number_do_not_count() -> None:
    zeros = "0" * 5000
    text = (
        f"repeat {zeros}18446744073709551615 macs {zeros} {{\n{zeros}20\n0x{zeros}14\nv_rd mem=dram step_x={zeros}7\n}}"
    )
    words = (20, 20, encode(VRd(Mem.DRAM, step_x=7)))
    assert assemble(text) == (Block(words, (1 << 64) - 1, macs=0),)


MEMS = ", ".join(mem.name.lower() for mem in Mem)
NAMES = ", ".join(cls.mnemonic for cls in INSTRUCTIONS.values())
FIELDS = "; its fields are mem, address, step_x, step_y"
NINES = "9" * 5000  # more digits than Python converts
OPEN = 'opens no block; block "name" repeat 3 macs 1000 { would'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v_rx mem=dram", f"1, column 1: no instruction 'v_rx'; there are {NAMES}"),
        ("# x\n  v_rd\n", "2, column 3: v_rd.mem is missing"),
        ("\tv_rd mem=foo", f"1, column 11: v_rd.mem=foo will not do; {MEMS} would"),
        ("v_rd mem=DRAM", f"1, column 10: v_rd.mem=DRAM will not do; {MEMS} would"),
        ("v_rd mem=2", f"1, column 10: v_rd.mem=2 will not do; {MEMS} would"),
        ("v_rd mem=dram mem=dram", "1, column 15: v_rd.mem is given twice"),
        ("v_rd mem=dram foo=3", f"1, column 15: 'foo=3' is no field of v_rd{FIELDS}"),
        ("v_rd dram", f"1, column 6: 'dram' is no field of v_rd{FIELDS}"),
        ("end_chain now=1", "1, column 11: 'now=1' is no field of end_chain, which has no fields"),
        ("mv_mul address=16777216", "1, column 16: mv_mul.address=16777216 does not fit in 24 bits"),
        ("mv_mul address=-1", "1, column 16: mv_mul.address=-1 will not do; a whole number would"),
        ("mv_mul address=", "1, column 16: mv_mul.address= will not do; a whole number would"),
        ("mv_mul address=١", "1, column 16: mv_mul.address=١ will not do; a whole number would"),
        ("s_wr register=rows value=6.0", "1, column 26: s_wr.value=6.0 will not do; a whole number would"),
        ("s_wr register=clip_low value=1e99", "1, column 30: s_wr.value=1e99 will not do; a whole number would"),
        ("s_wr register=rows", "1, column 1: s_wr.value is missing"),
        ("0x10000000000000000", "1, column 1: 0x10000000000000000 is no word of 64 bits"),
        ("1x", "1, column 1: 1x is no word of 64 bits"),
        (NINES, "1, column 1: 99999999999999999999… is no word of 64 bits"),
        (f"0x{NINES}", "1, column 1: 0x999999999999999999… is no word of 64 bits"),
        (f"mv_mul address={NINES}", "1, column 16: mv_mul.address=99999999999999999999… does not fit in 24 bits"),
        (f"mv_mul address={NINES}x", "1, column 16: mv_mul.address=99999999999999999999… will not do; a whole number "
         "would"),
        (f"repeat {NINES} {{", "1, column 1: repeat 99999999999999999999… does not fit in 64 bits"),
        (f"macs {NINES} {{", "1, column 1: macs 99999999999999999999… does not fit in 64 bits"),
        ("repeat 18446744073709551616 {", "1, column 1: repeat 18446744073709551616 does not fit in 64 bits"),
        ("end_chain\n }", "2, column 2: there is no block for } to close"),
        ("\nrepeat 3 {\nend_chain", "2, column 1: the block is never closed; a line } would do"),
        ("repeat 3 {\nrepeat 2 {", "2, column 1: blocks do not nest; the one of line 1 is still open"),
        ("repeat 0 {", "1, column 1: repeat 0; 1 or more would do"),
        ("repeat x {", f"1, column 1: 'repeat x {{' {OPEN}"),
        ("repeat 3", f"1, column 1: 'repeat 3' {OPEN}"),
        ('block "a {', f"1, column 1: 'block \"a {{' {OPEN}"),
        ('block "\\x" {', '1, column 1: the name "\\x" is no JSON string: Invalid \\escape'),
    ],
)  # fmt: skip
def test_errors_say_where_they_are(text: str, message: str) -> None:
    with pytest.raises(ProgramError) as error:
        assemble(text)
    assert str(error.value) == f"line {message}"


def test_the_page_of_the_instructions_is_made_from_them() -> None:
    assert PAGE.read_text(encoding="utf-8") == manual(), "docs/isa.md should be fpgasim.npu.assembly.manual()"
    for cls in INSTRUCTIONS.values():
        assert f"| {cls.opcode} | `{cls.mnemonic}` |" in manual()
