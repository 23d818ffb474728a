"""`fpgasim asm` and `fpgasim disasm`: text to words and back, program files, bad input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fpgasim.kernels import operand
from fpgasim.npu import get_device, resolve_numbers
from fpgasim.npu.assembly import assemble, disassemble
from fpgasim.npu.isa import Mem
from fpgasim.npu.programs import Port, Program, native_tiles
from fpgasim.ops import quantize

TEXT = """\
# twice
s_wr register=iterations_x value=4
block "copy" repeat 2 {
    v_rd mem=net_queue
    v_relu   # activation
    v_wr mem=initial_vrf address=7 step_x=1
    end_chain
}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "copy.asm").write_text(TEXT)
    return tmp_path / "copy.asm"


def test_words_and_assembly_turn_into_each_other(fpgasim, source, tmp_path):
    words = fpgasim("asm", source).stdout
    assert words == (
        "block repeat 1 {\n    0x0000000000004093\n}\n"
        'block "copy" repeat 2 {\n    0x0000000000000041\n    0x000000000000000f\n    0x0000000400001c05\n'
        "    0x0000000000000014\n}\n"
    )
    (tmp_path / "words").write_text(words)
    text = fpgasim("disasm", tmp_path / "words").stdout
    assert text == fpgasim("disasm", source).stdout == disassemble(assemble(TEXT))
    (tmp_path / "again.asm").write_text(text)
    assert fpgasim("asm", tmp_path / "again.asm").stdout == words


def test_a_program_file_is_written_for_a_device_and_printed(fpgasim, source, tmp_path):
    out = tmp_path / "copy.fpgaprog"
    said = fpgasim("asm", source, "-o", out, "--device", "bw_s10", "--format", "fp32").stdout
    assert said == f"wrote {out}: 2 blocks, 5 words, 1 chain\n"
    program = Program.load(out)
    assert (program.name, program.device, program.blocks) == ("copy", get_device("bw_s10"), assemble(TEXT))
    assert fpgasim("disasm", out).stdout == (
        "# program 'copy' for bw_s10\n# numbers: fp32, fp32 sums, order khwc, fp32\n" + disassemble(program.blocks)
    )


def test_contents_and_ports_of_a_program_file_are_told(fpgasim, tmp_path):
    device = get_device("bw_a10")
    made = Program(
        "net",
        device,
        resolve_numbers(device, "msfp12"),
        assemble(TEXT),
        {Mem.ADDSUB_VRF_1: np.ones((3, 128), np.float32)},
        {Mem.DRAM: native_tiles(operand(quantize(np.ones((128, 300)), "msfp12")), 128)},
        (Port("image", (1, 3, 10, 10), packed=True),),
        (Port("y", (2, 300)),),
    )
    made.save(tmp_path / "net.fpgaprog")
    text = fpgasim("disasm", tmp_path / "net.fpgaprog").stdout
    assert text.splitlines()[:6] == [
        "# program 'net' for bw_a10",
        "# numbers: msfp12, exact sums, order khwc, fp16",
        "# input 'image': (1, 3, 10, 10), packed in 3 vectors of 128",
        "# output 'y': (2, 300), 6 vectors of 128",
        "# addsub_vrf_1 holds 3 vectors",
        "# dram holds 3 tiles",
    ]
    assert assemble(text) == made.blocks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"v_rd mem=dram\nv_foo\n", "{file}, line 2, column 1: no instruction 'v_foo'; there are v_rd, "),
        (b"v_rd mem=initial_vrf\n", "block 0, word 0 (v_rd mem=initial_vrf): the block ends inside a chain"),
        (b"mv_mul\nend_chain", "block 0, word 0 (mv_mul): a chain begins with a v_rd or m_rd"),
    ],
)
def test_a_broken_program_is_one_line(refused: Callable[..., str], tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "broken.asm"
    file.write_bytes(text)
    assert refused("asm", file, exit_code=12).startswith(message.format(file=file))


def test_a_file_that_is_no_text_or_not_there_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "x"
    assert refused("disasm", file, exit_code=4) == f"file {str(file)!r}: No such file or directory"
    file.write_bytes(b"\xff\xfe\x00")
    assert refused("disasm", file, exit_code=4) == f"file {str(file)!r} is neither a text in UTF-8 nor a program file"
    file.write_bytes(b"fpgaprog\x01")
    assert refused("disasm", file, exit_code=12).startswith(f"program file {str(file)!r} is cut off: it has 9 bytes")
