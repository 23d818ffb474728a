"""A layer leaves its numbers in blocks: whoever reads them there gets what it would have made of the numbers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from fpgasim.kernels import Operand, Window, available, pointwise as unit
from fpgasim.kernels.contract import Codes, Reader, Step, Unquantized
from fpgasim.kernels.native import Native
from fpgasim.numerics import CATALOGUE, BlockFormat

#: A CPU without any would leave nothing to test, which the parametrization then says.
ROOMY = [b for b in available().values() if isinstance(b, Native) and b.bytes_convolution.there]
FORMATS = [
    *(CATALOGUE[key] for key in ("msfp16", "msfp12", "mxint8", "fp13agx")),
    CATALOGUE["msfp16"].with_block(64), CATALOGUE["msfp11"].with_block(4), CATALOGUE["mxint8"].with_block(20),
    CATALOGUE["fp16_bfp"].with_block(20),
]  # fmt: skip
POINT, WIDE = Window((1, 1)), Window((3, 3), pads=(1, 1, 1, 1))
MIXED = [
    POINT,
    Window((1, 1), stride=(2, 2)),
    Window((3, 2), stride=(2, 1), pads=(1, 0, 2, 1), dilation=(1, 2)),
    Window((1, 1), pads=(0, 1, 0, 0)),
]


@pytest.fixture(params=ROOMY, ids=lambda b: b.name)
def native(request: pytest.FixtureRequest) -> Native:
    kernels: Native = request.param
    return kernels


def check(
    native: Native,
    blocked: Any,
    same_bits: Any,
    x: Any,
    w: Any,
    fmt: BlockFormat,
    windows: list[Window],
    *,
    window: Window = POINT,
    groups: int = 1,
    sums: tuple[str, str] = ("fp32", "khwc"),
    pointwise: Any = "fp16",
    steps: Any = (),
    with_numbers: bool = False,
    threads: int = 1,
) -> int:
    """A layer of weights `w` on `x` leaves blocks for readers of all `windows`; how many values saturated in it."""
    rng, outputs = np.random.default_rng(0), len(w)
    n, height, width, _ = x.shape
    shape = (n, *window.output_size(height, width), outputs)
    weights = [blocked(rng.standard_normal((7 * groups, *v.kernel, outputs)).astype(np.float32), fmt) for v in windows]
    room = native.code_room(shape, fmt, [Reader(v, p, groups, *sums) for v, p in zip(weights, windows, strict=True)])
    assert room is not None
    w = blocked(w, fmt)
    numbers = np.empty((np.prod(shape[:3]), outputs), np.float32)
    results = {len(steps) - 1: numbers}
    with np.errstate(all="ignore"):
        counts = native.layer(Unquantized(x, fmt), w, window, 1, *sums, steps, results, pointwise, 1)
    codes = Codes(room, np.full(room.size, 0xA5, np.uint8))
    made = {len(steps) - 1: np.full_like(numbers, np.nan)} if with_numbers else {}
    run = native.bind_layer(Unquantized(x, fmt), w, window, 1, *sums, steps, made, pointwise, threads, codes)
    for _ in range(2):
        assert run() == counts
        assert all(same_bits(v, numbers) for v in made.values())
        for v, place in zip(weights, windows, strict=True):
            source = Unquantized(numbers.reshape(shape), fmt)
            size = np.prod([n, *place.output_size(*shape[1:3])]), len(v.mantissas)
            expected, got = np.full((2, *size), np.nan, np.float32)
            native.layer(source, v, place, groups, *sums, [], {-1: expected}, "fp32", 1)
            native.bind_layer(codes, v, place, groups, *sums, [], {-1: got}, "fp32", threads)()
            assert same_bits(got, expected)
    return counts[1]


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f"{f.name}:{f.block}")
@pytest.mark.parametrize("sums", [("fp32", "khwc"), ("fp32", "chwk"), ("exact", "khwc"), ("fp16", "khwc")])
def test_readers_of_blocks_get_what_they_would_of_numbers(
    native: Native, fmt: BlockFormat, sums: tuple[str, str], numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(2)
    for channels, outputs, window, windows in (
        (20, 64, POINT, [POINT]),
        (20, 64, WIDE, [WIDE]),
        (16, 37, POINT, [WIDE, POINT]),
        (16, 5, Window((3, 3), stride=(2, 2)), MIXED),
        (16, 130, POINT, [Window((5, 5), pads=(4, 3, 2, 4))]),
        (16, 200, POINT, [POINT]),  # on three threads by panels
    ):
        x = numbers(rng, "ordinary", 2, 7, 9, channels)
        w = numbers(rng, "ordinary", outputs, *window.kernel, channels)
        bias = unit.round_to(numbers(rng, "ordinary", outputs), "fp16")
        for threads, with_numbers in ((1, True), (3, False)):
            steps = [Step("add", bias), Step("relu")]
            check(
                native, blocked, same_bits, x, w, fmt, windows, window=window, sums=sums, steps=steps,
                with_numbers=with_numbers, threads=threads,
            )  # fmt: skip


def test_readers_in_groups_take_whole_blocks(native: Native, numbers: Any, blocked: Any, same_bits: Any) -> None:
    rng = np.random.default_rng(3)
    x, w = numbers(rng, "ordinary", 1, 5, 6, 24), numbers(rng, "ordinary", 96, 1, 1, 24)
    for windows in ([WIDE], [POINT, WIDE]):
        check(native, blocked, same_bits, x, w, CATALOGUE["msfp16"], windows, groups=3)


@pytest.mark.parametrize("with_numbers", [True, False])
@pytest.mark.parametrize("pointwise", ["fp16", "bf16", "fp32"])
def test_steps_and_saturations_are_those_of_the_layer(
    native: Native, pointwise: Any, with_numbers: bool, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(4)
    x, w = numbers(rng, "ordinary", 1, 9, 8, 32), numbers(rng, "ordinary", 48, 3, 3, 32) * np.float32(500)
    bias, residual = (
        unit.round_to(numbers(rng, "ordinary", *s) * np.float32(6e4), pointwise) for s in ((48,), (72, 48))
    )
    steps = [Step("add", bias), Step("add", residual), Step("relu"), Step("sigmoid")]
    for count in (3, 4):  # the C kernels take no sigmoid of fp32
        for threads in (1, 2):
            saturated = check(
                native, blocked, same_bits, x, w, CATALOGUE["msfp16"], [WIDE, POINT], window=WIDE, pointwise=pointwise,
                steps=steps[:count], with_numbers=with_numbers, threads=threads,
            )  # fmt: skip
            assert (saturated > 0) == (pointwise == "fp16")


@pytest.mark.parametrize("kind", ["any", "finite", "spread", "tiny", "zeros"])
@pytest.mark.parametrize("fmt", [FORMATS[0], FORMATS[3], FORMATS[6]], ids=lambda f: f.name)
@pytest.mark.parametrize("sums", [("fp32", "khwc"), ("exact", "khwc")])
def test_blocks_that_a_byte_convolution_cannot_take_reach_the_general_one(
    native: Native, kind: str, fmt: BlockFormat, sums: tuple[str, str], numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(5)
    x = numbers(rng, "ordinary", 1, 4, 5, 40)
    identity = np.eye(40, dtype=np.float32).reshape(40, 1, 1, 40)
    step = Step("mul", numbers(rng, kind, 20, 40))  # numbers of fp32 from one end to the other
    check(native, blocked, same_bits, x, identity, fmt, [WIDE], sums=sums, pointwise="fp32", steps=[step])


def test_few_pixels_on_many_threads_are_left_in_blocks_too(
    native: Native, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    rng = np.random.default_rng(6)
    x, w = numbers(rng, "ordinary", 1, 1, 1, 64), numbers(rng, "ordinary", 80, 1, 1, 64)
    check(native, blocked, same_bits, x, w, CATALOGUE["msfp16"], [POINT], threads=3)


def test_rooms_are_for_readers_that_agree_and_read_most_pixels(native: Native, blocked: Any) -> None:
    def reader(fmt: BlockFormat, window: Window, channels: int = 32, groups: int = 1, sums: str = "fp32") -> Reader:
        w: Operand = blocked(np.ones((6, *window.kernel, channels), np.float32), fmt)
        return Reader(w, window, groups, sums, "khwc")

    def there(fmt: BlockFormat, *readers: Reader) -> bool:
        return native.code_room((1, 8, 8, 32), fmt, readers) is not None

    int8, long, words = CATALOGUE["msfp16"], CATALOGUE["msfp16"].with_block(32), CATALOGUE["fp13agx"]
    assert there(int8, reader(int8, POINT), reader(CATALOGUE["msfp12"], WIDE))
    assert not there(int8, reader(int8, POINT), reader(long, WIDE))
    assert not there(long, reader(int8, POINT))
    assert not there(int8, reader(int8, POINT), reader(words.with_block(16), POINT))
    assert not there(int8, reader(int8, POINT, groups=3))
    assert not there(int8, reader(int8, POINT, sums="fixed(32,8,wrap)"))
    assert not there(CATALOGUE["mxfp8_e4m3"], reader(CATALOGUE["mxfp8_e4m3"], POINT))
    assert not there(int8, reader(int8, MIXED[1]))
    assert there(int8, reader(int8, MIXED[1]), reader(int8, POINT))


small = st.integers(1, 3)
windows_of = st.builds(
    Window,
    st.tuples(small, small),
    st.tuples(small, small),
    st.tuples(*[st.integers(0, 3)] * 4),
    st.tuples(small, small),
)


def test_blocks_are_those_of_the_numbers_for_any_shape_and_any_numbers(
    native: Native, fuzz: settings, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    @fuzz
    @given(
        st.sampled_from(FORMATS),
        st.sampled_from([("fp32", "khwc"), ("exact", "khwc"), ("bf16", "chwk")]),
        st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 19), st.integers(1, 40)),
        st.integers(1, 150),
        st.lists(windows_of, min_size=1, max_size=3),
        st.sampled_from(["fp16", "fp32"]),
        st.tuples(st.sampled_from(["ordinary", "spread", "any"]), st.integers(0, 2**32)),
        st.tuples(st.booleans(), st.integers(1, 3)),
    )
    def any_case(
        fmt: BlockFormat, sums: Any, shape: Any, outputs: int, windows: Any, pointwise: Any, kind: Any, more: Any
    ) -> None:
        reach = [
            np.multiply(v.dilation, np.subtract(v.kernel, 1)) + 1 - np.add(v.pads[:2], v.pads[2:]) for v in windows
        ]
        assume(all((r <= shape[1:3]).all() for r in reach))
        assume(any(max(np.subtract(v.stride, v.kernel)) <= 0 for v in windows))
        rng = np.random.default_rng(kind[1])
        x, w = numbers(rng, kind[0], *shape), numbers(rng, "ordinary", outputs, 1, 1, shape[3])
        check(
            native, blocked, same_bits, x, w, fmt, windows, sums=sums, pointwise=pointwise, steps=[Step("relu")],
            with_numbers=more[0], threads=more[1],
        )  # fmt: skip

    any_case()


@pytest.mark.parametrize("threads", [63, 64, 65, 100, 1024])
@pytest.mark.parametrize("outputs", [2048, 4096])
def test_any_number_of_threads_has_room_for_its_results(
    native: Native, outputs: int, threads: int, numbers: Any, blocked: Any, same_bits: Any
) -> None:
    # 128 panels are enough for 64 threads to share them out among themselves, but not for 65, which there never are.
    rng = np.random.default_rng(9)
    x, w = numbers(rng, "ordinary", 1, 9, 9, 16), numbers(rng, "ordinary", outputs, 1, 1, 16)
    check(native, blocked, same_bits, x, w, CATALOGUE["msfp16"], [POINT], threads=threads)
