"""Room in a memory, and where a tensor lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fpgasim.npu.isa import Mem


class At(NamedTuple):
    """The addresses of an access of a chain, in elements: `address` + x·`step_x` + y·`step_y` in iteration (x, y)."""

    mem: Mem
    address: int = 0
    step_x: int = 0
    step_y: int = 0


class Piece(NamedTuple):
    """Output positions of a layer, and vectors `first` … `last` − 1 of their channels.

    Rows `top` … `bottom` − 1, each `down` from the last, by columns `left` … `right` − 1, each `along` from the last,
    of `image`.
    """

    image: int
    top: int
    bottom: int
    left: int
    right: int
    first: int
    last: int
    down: int = 1
    along: int = 1

    @property
    def width(self) -> int:
        return max(0, -(-(self.right - self.left) // self.along))

    @property
    def height(self) -> int:
        return max(0, -(-(self.bottom - self.top) // self.down))

    @property
    def vectors(self) -> int:
        return self.last - self.first

    def within(self, rows: range, columns: range) -> Piece:
        """The positions of the piece that lie in `rows` and `columns`."""
        top, bottom = max(self.top, rows.start), min(self.bottom, rows.stop)
        left, right = max(self.left, columns.start), min(self.right, columns.stop)
        return self._replace(top=top, bottom=max(top, bottom), left=left, right=max(left, right))


@dataclass(frozen=True)
class Buffer:
    """Where an image tensor, or a part of it, lies: NHWC; addresses and pitches in elements.

    `base` is the address of what it holds first: element `first` of the pixel at (`image`, `top`, `left`), which lie
    outside the image where there is a halo. `across` makes the images the columns of one row: pixels of images of one
    pixel.
    """

    mem: Mem
    base: int
    pixel: int
    row: int
    plane: int = 0
    image: int = 0
    top: int = 0
    left: int = 0
    first: int = 0

    def address(self, image: int, y: int, x: int, element: int = 0) -> int:
        return (
            self.base
            + (image - self.image) * self.plane
            + (y - self.top) * self.row
            + (x - self.left) * self.pixel
            + element
            - self.first
        )

    def at(self, image: int, y: int, x: int, stride: tuple[int, int] = (1, 1), element: int = 0) -> At:
        """The addresses of pixels `stride` apart, beginning with (y, x) of `image`."""
        return At(self.mem, self.address(image, y, x, element), stride[1] * self.pixel, stride[0] * self.row)

    def of(self, piece: Piece, native: int) -> At:
        """The addresses of a piece of the tensor."""
        return self.at(piece.image, piece.top, piece.left, (piece.down, piece.along), piece.first * native)

    def across(self) -> Buffer:
        """The pixels (0, 0) of all images, as one row."""
        return Buffer(
            self.mem, self.address(self.image, 0, 0, self.first), self.plane, 0, 0, 0, 0, self.image, self.first
        )


class Space:
    """The free vectors of a memory: first fit, from the low end."""

    def __init__(self, low: int, high: int) -> None:
        self.gaps = [(low, high)] if low < high else []

    def take(self, size: int) -> int | None:
        """The address of `size` vectors that are now taken; None where no gap is that long."""
        for i, (low, high) in enumerate(self.gaps):
            if high - low >= size:
                self.gaps[i : i + 1] = [(low + size, high)] if high - low > size else []
                return low
        return None

    def give(self, low: int, size: int) -> None:
        """Frees `size` vectors from `low` on."""
        merged: list[tuple[int, int]] = []
        for gap in sorted([*self.gaps, (low, low + size)]):
            if merged and merged[-1][1] == gap[0]:
                merged[-1] = (merged[-1][0], gap[1])
            else:
                merged.append(gap)
        self.gaps = merged

    @property
    def longest(self) -> tuple[int, int]:
        """Address and length of the longest gap."""
        low, high = max(self.gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
        return low, high - low


def compact(mem: Mem, base: int, piece: Piece, native: int) -> Buffer:
    """A buffer from vector `base` on that holds nothing but `piece`."""
    pixel = piece.vectors * native
    return Buffer(
        mem, base * native, pixel, piece.width * pixel, 0, piece.image, piece.top, piece.left, piece.first * native
    )
