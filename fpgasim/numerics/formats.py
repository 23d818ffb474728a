"""`BlockFormat`, a block number format as a value, and the catalogue of those with a name.

A block of `block` numbers shares one exponent S. An element is either an integer mantissa q, worth
q·2^(S − fraction_bits), or (`element_exponent_bits > 0`) a small float f, worth f·2^S.
`fp32` is the format that quantizes nothing.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from fpgasim.errors import FormatError, UnknownNameError

Encoding = Literal["sign_magnitude", "twos_complement"]

#: Exponent of a block that holds a NaN or an infinity. With 8 bits it is the code 255 (OCP MX v1.0, 5.4.1);
#: with 5 bits no code is reserved, so such a block exists in memory but cannot be packed.
NAN_EXPONENT = 128

#: Block of a format in which a whole vector, however long, shares one exponent.
WHOLE = 0


@dataclass(frozen=True)
class BlockFormat:
    """One block format: how many bits an element has, how many the shared exponent, how many elements share it.

    `mantissa_bits` counts the magnitude bits of an integer element (without its sign) or the fraction bits of a
    float element. `block` may be `WHOLE`: the length of the axis that is blocked. `encoding` says how a packed integer
    element stores its sign. `follows_device` marks formats whose block is the native dimension of the device that runs
    them.
    """

    name: str
    mantissa_bits: int
    exponent_bits: int
    block: int
    element_exponent_bits: int = 0
    element_max: float = 0.0
    encoding: Encoding = "sign_magnitude"
    follows_device: bool = False

    def __post_init__(self) -> None:
        def require(condition: bool, field: str, wanted: str) -> None:
            if not condition:
                raise FormatError(f"format {self.name!r}: {field}={getattr(self, field)} must be {wanted}")

        require(isinstance(self.name, str), "name", "a text")
        for field in ("mantissa_bits", "exponent_bits", "block", "element_exponent_bits"):
            require(type(getattr(self, field)) is int, field, "a whole number")
        require(type(self.element_max) in (int, float), "element_max", "a number")
        require(self.exponent_bits in (0, 5, 8), "exponent_bits", "5 or 8 (0 only for fp32)")
        require(0 <= self.block <= 1 << 16, "block", "between 1 and 65536, or WHOLE = 0")
        if self.is_fp32:
            require(self.block == 1, "block", "1 for fp32")
            return
        if self.is_float:
            require(2 <= self.element_exponent_bits <= 5, "element_exponent_bits", "between 2 and 5")
            require(
                1 <= self.mantissa_bits <= 7 - self.element_exponent_bits, "mantissa_bits", "so that 8 bits suffice"
            )
            largest = math.ldexp(
                2 - 2.0**-self.mantissa_bits, (1 << self.element_exponent_bits) - 2 + self.element_emin
            )
            require(0 < self.element_max <= largest, "element_max", f"the largest element value, at most {largest:g}")
            step = math.ldexp(1.0, max(math.frexp(self.element_max)[1] - 1, self.element_emin) - self.mantissa_bits)
            require(self.element_max % step == 0, "element_max", "a value of an element")
            require(self.exponent_bits == 8, "exponent_bits", "8 for float elements")
        else:
            require(1 <= self.mantissa_bits <= 15, "mantissa_bits", "between 1 and 15")
        require(self.encoding in ("sign_magnitude", "twos_complement"), "encoding", "sign_magnitude or twos_complement")

    @property
    def is_fp32(self) -> bool:
        return self.exponent_bits == 0

    @property
    def is_float(self) -> bool:
        """Whether an element is a small float instead of an integer mantissa."""
        return self.element_exponent_bits > 0

    @property
    def element_bits(self) -> int:
        return 32 if self.is_fp32 else 1 + self.element_exponent_bits + self.mantissa_bits

    @property
    def bits_per_element(self) -> float:
        """Storage per element with the shared exponent spread over the block, in bits; over no end if it is WHOLE."""
        return self.element_bits + (self.exponent_bits / self.block if self.block else 0)

    @property
    def max_code(self) -> int:
        """The largest integer mantissa; the smallest is its negative, on every encoding."""
        return (1 << self.mantissa_bits) - 1

    @property
    def fraction_bits(self) -> int:
        """An integer mantissa q is worth q·2^(S − fraction_bits); 0 for float elements."""
        return 0 if self.is_float or self.is_fp32 else self.mantissa_bits - 1

    @property
    def element_emax(self) -> int:
        """Exponent of the largest element: S = E − element_emax, E the exponent of the block's largest magnitude."""
        return math.frexp(self.element_max)[1] - 1 if self.is_float else 0

    @property
    def element_emin(self) -> int:
        """Exponent of the smallest normal float element."""
        return 2 - (1 << self.element_exponent_bits - 1)

    @property
    def exponent_bias(self) -> int:
        """A shared exponent S is stored as S + exponent_bias."""
        return 15 if self.exponent_bits == 5 else 127

    @property
    def exponent_range(self) -> tuple[int, int]:
        """The lowest and the highest shared exponent that is not NaN."""
        return (-15, 16) if self.exponent_bits == 5 else (-127, 127)

    def with_block(self, block: int) -> BlockFormat:
        """This format with another block size, which may be `WHOLE`."""
        return dataclasses.replace(self, block=block)

    def for_length(self, n: int) -> BlockFormat:
        """This format as a vector of `n` elements is blocked: a `WHOLE` block has its length.

        Raises FormatError where that is more than a block can have.
        """
        return self if self.block else self.with_block(max(n, 1))


def _msfp(bits: int) -> BlockFormat:
    """MSFP-N of Darvish Rouhani et al., NeurIPS 2020: sign, N − 9 magnitude bits, 8-bit exponent, boxes of 16."""
    return BlockFormat(f"msfp{bits}", mantissa_bits=bits - 9, exponent_bits=8, block=16)


def _brainwave(mantissa_bits: int) -> BlockFormat:
    """The 1s.5e.Mm formats of Fowers et al., ISCA 2018, IV-B: one 5-bit exponent per native vector."""
    return BlockFormat(f"bw_1s5e{mantissa_bits}m", mantissa_bits, exponent_bits=5, block=128, follows_device=True)


def _mx(name: str, exponent_bits: int, mantissa_bits: int, largest: float) -> BlockFormat:
    """A float format of OCP Microscaling v1.0: 32 elements under an E8M0 scale."""
    return BlockFormat(name, mantissa_bits, 8, 32, element_exponent_bits=exponent_bits, element_max=largest)


def _intel(name: str, mantissa_bits: int, encoding: Encoding = "sign_magnitude") -> BlockFormat:
    """A block format of Intel's FPGA AI Suite (IP reference manual, "Block Floating Point"): 5-bit exponent.

    The block there is the architecture's c_vector, 4 to 64; 16 is assumed here.
    """
    return BlockFormat(name, mantissa_bits, exponent_bits=5, block=16, encoding=encoding)


#: Every format with a name. A new one is one line here.
CATALOGUE: dict[str, BlockFormat] = {
    f.name: f
    for f in (
        *(_msfp(bits) for bits in range(11, 17)),
        *(_brainwave(mantissa_bits) for mantissa_bits in (2, 3, 5)),
        BlockFormat("mxint8", mantissa_bits=7, exponent_bits=8, block=32, encoding="twos_complement"),
        _mx("mxfp8_e5m2", 5, 2, 57344.0),
        _mx("mxfp8_e4m3", 4, 3, 448.0),
        _mx("mxfp6_e3m2", 3, 2, 28.0),
        _mx("mxfp6_e2m3", 2, 3, 7.5),
        _mx("mxfp4_e2m1", 2, 1, 6.0),
        _intel("fp11_intel", 6),
        _intel("fp12agx", 7, "twos_complement"),
        _intel("fp13agx", 8, "twos_complement"),
        _intel("fp16_bfp", 11),
        BlockFormat("fp32", mantissa_bits=23, exponent_bits=0, block=1),
    )
}


def get_format(format: str | BlockFormat) -> BlockFormat:
    """The format called `format`, or `format` itself when it already is one.

    Raises UnknownNameError for a name that is not in the catalogue.
    """
    if isinstance(format, BlockFormat):
        return format
    if not isinstance(format, str) or format not in CATALOGUE:
        raise UnknownNameError("format", format, CATALOGUE)
    return CATALOGUE[format]
