"""What decides the bits of a plan, as a value."""

import dataclasses
import re

import pytest

from fpgasim.errors import FpgasimError, InputError, UnknownNameError
from fpgasim.npu import Numbers, resolve_numbers
from fpgasim.numerics import get_format

MSFP = get_format("msfp16")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"accumulator": "foo"}, UnknownNameError, "no accumulator 'foo'; there are fp32"),
        ({"accumulator": "fixed(65,8,wrap)"}, InputError, "65 bits will not do; 2 to 64 would"),
        ({"order": "zz"}, UnknownNameError, "no order 'zz'; there are khwc"),
        ({"pointwise": "foo"}, UnknownNameError, "no pointwise type 'foo'; there are fp16"),
        ({"format": "msfp16"}, InputError, "numbers: format='msfp16' is no BlockFormat"),
    ],
)
def test_numbers_that_there_are_none_of_are_refused(
    change: dict[str, str], error: type[FpgasimError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        dataclasses.replace(resolve_numbers("bw_a10", MSFP), **change)  # type: ignore[arg-type]


def test_names_of_numbers_are_kept_in_one_spelling() -> None:
    spelled = Numbers(MSFP, "fixed( 32, 8, wrap )", "tree( 4 )", "fp16")
    assert (spelled.accumulator, spelled.order) == ("fixed(32,8,wrap)", "tree(4)")
    assert spelled == resolve_numbers("bw_a10", MSFP, "fixed(32,8,wrap)", "tree(4)")
