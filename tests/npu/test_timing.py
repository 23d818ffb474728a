"""Cycles of layers and segments against hand computation, published figures and properties that must hold."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpgasim import ops
from fpgasim.kernels import pointwise as unit
from fpgasim.kernels.contract import Window
from fpgasim.npu import (
    DEVICES,
    Device,
    Layer,
    Stage,
    get_device,
    layer_timing,
    resolve_numbers,
    segment_timing,
    transfer_seconds,
    wire_bytes,
)
from fpgasim.npu.timing import Mapping
from fpgasim.numerics import BlockFormat

#: N/L = 2 cycles a product, four tile engines, 8 bytes of DRAM a cycle.
TOY = Device(
    "toy",
    native_dim=8,
    lanes=4,
    tiles=4,
    mrf_tiles=16,
    mfus=2,
    clock_hz=1_000_000,
    mvm_latency=10,
    mfu_latency=3,
    dispatch_cycles=5,
    dram_bytes_per_s=8e6,
    dram_efficiency=1.0,
    dram_burst_bytes=4,
)
FILL = 5 + 10 + 2 * 3
POINTWISE_FILL = 5 + 2 * 3
BW = resolve_numbers(TOY, "bw_1s5e5m")


def blocks_of(block, accumulator="exact", order="khwc"):
    return resolve_numbers(TOY, BlockFormat(f"b{block}", 3, 8, block), accumulator, order)


def layer(head, in_shape, out_shape, kernel=None, **more):
    window = Window(kernel) if kernel else None
    return Layer(head, head, (head,), ("x",), "y", in_shape, out_shape, window=window, **more)


def conv(inputs, outputs, kernel=(1, 1), positions=(1, 1), **more):
    height, width = positions[0] + kernel[0] - 1, positions[1] + kernel[1] - 1
    return layer("conv", (1, height, width, inputs), (1, *positions, outputs), kernel, weight="w", **more)


def matmul(inputs, outputs, batch=1):
    return layer("matmul", (batch, 1, 1, inputs), (batch, 1, 1, outputs), weight="w")


def stages(*kinds):
    return tuple(Stage(kind, f"y{i}", operand="c") for i, kind in enumerate(kinds))


def test_a_single_vector_spreads_its_tiles_over_the_engines():
    timing = layer_timing(matmul(32, 16), TOY, BW)
    assert timing.native_tiles == 4 * 2
    assert timing.mapping == Mapping("matrix", pixels=1, tiles=4)
    assert timing.mapping.kind == "tile-parallel"
    assert (timing.mvm_cycles, timing.fill_cycles, timing.compute_cycles) == (2 * 2, FILL, 4 + FILL)


def test_many_positions_of_one_tile_spread_over_the_engines():
    timing = layer_timing(conv(8, 8, positions=(2, 5)), TOY, BW)
    assert timing.mapping == Mapping("tap", pixels=4, tiles=1)
    assert timing.mapping.kind == "pixel-parallel"
    assert timing.mvm_cycles == 3 * 1 * 2  # ten positions, four at a time


def test_positions_and_tiles_share_the_engines_where_neither_fills_them():
    timing = layer_timing(conv(8, 24, positions=(1, 2)), dataclasses.replace(TOY, tiles=6), BW)
    assert timing.mapping == Mapping("tap", pixels=2, tiles=3)
    assert timing.mapping.kind == "hybrid"
    assert timing.mvm_cycles == 1 * 1 * 2


def test_utilization_is_the_share_of_the_multipliers_that_did_work():
    timing = layer_timing(matmul(32, 16), TOY, BW)
    assert timing.macs == 512
    assert timing.utilization == 512 / ((4 + FILL) * 4 * 8 * 4)


@pytest.mark.parametrize(
    ("accumulator", "inputs", "outputs", "steps"),
    [("exact", 32, 8, 1), ("fp32", 32, 8, 4), ("exact", 32, 32, 4), ("fp32", 32, 32, 4), ("fp32", 32, 16, 4)],
)
def test_only_an_exact_sum_may_be_split_over_engines(accumulator, inputs, outputs, steps):
    timing = layer_timing(matmul(inputs, outputs), TOY, resolve_numbers(TOY, "bw_1s5e5m", accumulator))
    assert timing.mvm_cycles == 2 * steps


@pytest.mark.parametrize(
    ("order", "inputs", "outputs", "steps"),
    [
        ("tree(4)", 32, 8, 1),  # four tiles, four engines
        ("tree(4)", 40, 8, 2),
        ("tree(2)", 32, 8, 2),
        ("tree(2)", 32, 16, 2),  # two rows, two engines each
        ("tree(3)", 32, 16, 4),  # rows over engines are no slower
        ("tree(5)", 32, 8, 4),  # more engines than there are
    ],
)
def test_a_tree_may_be_split_over_as_many_engines_as_it_is_made_for(order, inputs, outputs, steps):
    numbers = resolve_numbers(TOY, "bw_1s5e5m", "fp16", order)
    assert layer_timing(matmul(inputs, outputs), TOY, numbers).mvm_cycles == 2 * steps
    small = layer_timing(matmul(inputs, outputs), TOY, blocks_of(4, "fp16", order))  # two blocks of a tile in turn
    assert small.mvm_cycles == layer_timing(matmul(inputs, outputs), TOY, blocks_of(4, "fp16")).mvm_cycles


@pytest.mark.parametrize(
    ("inputs", "packing", "lowering", "tiles"),
    [(3, "window", "window", 4), (8, "channel", "tap", 9), (12, "channel", "tap", 18), (3, "channel", "tap", 9)],
)
def test_a_window_lies_in_the_tiles_of_its_lowering(inputs, packing, lowering, tiles):
    timing = layer_timing(conv(inputs, 8, (3, 3), packing=packing), TOY, BW)
    assert (timing.mapping.lowering, timing.native_tiles) == (lowering, tiles)


@pytest.mark.parametrize(
    ("inputs", "numbers", "lowering", "tiles"),
    [
        (4, blocks_of(4), "tap_packed", 5),  # two taps a tile
        (3, blocks_of(4), "tap_packed", 5),  # a tap takes whole blocks
        (5, blocks_of(4), "tap", 9),
        (4, blocks_of(8), "tap", 9),  # two taps would share a block
        (2, blocks_of(2), "tap_packed", 3),  # four taps a tile
        (4, blocks_of(2, "fp32", "khwc"), "tap_packed", 5),
        (4, blocks_of(2, "fp32", "chwk"), "tap", 9),  # block 1 of a tap comes after block 0 of all taps
        (4, blocks_of(2, "exact", "chwk"), "tap_packed", 5),
        (4, blocks_of(2, "bf16", "tree(4)"), "tap_packed", 5),
        (2, blocks_of(2, "fp32", "chwk"), "tap_packed", 3),
    ],
)
def test_taps_share_a_tile_only_where_no_bit_can_change(inputs, numbers, lowering, tiles):
    timing = layer_timing(conv(inputs, 8, (3, 3)), TOY, numbers)
    assert (timing.mapping.lowering, timing.native_tiles) == (lowering, tiles)


@pytest.mark.parametrize("accumulator", ["exact", "fp32"])
@pytest.mark.parametrize("channels", [3, 4, 8])
def test_the_tap_packed_lowering_has_the_bits_of_the_convolution(accumulator, channels):
    rng = np.random.default_rng(channels)
    fmt, window = BlockFormat("b4", 3, 8, 4), Window((3, 2), pads=(1, 0, 1, 1))
    x = rng.standard_normal((1, 5, 4, channels)).astype(np.float32) * np.float32(2.0) ** rng.integers(-9, 9, (5, 4, 1))
    w = rng.standard_normal((3, channels, 3, 2)).astype(np.float32)
    how = {"format": fmt, "layout": "NHWC", "accumulator": accumulator}
    whole = ops.conv2d(x, w, padding=window.pads, **how)
    slot = [(0, -channels % 4)]
    columns = unit.unfold(np.pad(x, [(0, 0)] * 3 + slot), window)
    rows = np.pad(w.transpose(0, 2, 3, 1), [(0, 0)] * 3 + slot).reshape(3, -1, 1, 1)
    assert whole.tobytes() == ops.conv2d(columns, rows, **how).tobytes()


def test_tiles_between_groups_are_left_out():
    assert layer_timing(conv(16, 16, groups=2), TOY, BW).native_tiles == 2
    assert layer_timing(conv(24, 24, (3, 3), groups=2), TOY, BW).native_tiles == 9 * (2 + 3 + 2)


@given(st.integers(2, 6), st.integers(1, 14), st.integers(1, 14))
@settings(deadline=None)
def test_grouped_tiles_are_those_with_a_weight_in_them(groups, inputs, outputs):
    weights = ops.expand_groups(np.ones((outputs * groups, inputs, 1, 1), np.float32), groups, inputs * groups)[:, 0, 0]
    padded = np.pad(weights, [(0, -n % 8) for n in weights.shape])
    used = padded.reshape(padded.shape[0] // 8, 8, -1, 8).any(axis=(1, 3)).sum()
    assert layer_timing(conv(inputs * groups, outputs * groups, groups=groups), TOY, BW).native_tiles == used


def test_a_depthwise_convolution_passes_once_a_tap_through_the_pointwise_unit():
    timing = layer_timing(layer("depthwise", (1, 3, 7, 12), (1, 1, 5, 12), (3, 3), groups=12, weight="w"), TOY, BW)
    occupancy = 3 * 2  # five positions of two vectors, four at a time
    assert (timing.mvm_cycles, timing.pointwise_cycles, timing.fill_cycles) == (0, 9 * occupancy, POINTWISE_FILL)
    assert (timing.native_tiles, timing.weight_bytes, timing.macs) == (0, 9 * 2 * 8 * 2, 9 * 5 * 12)


def test_a_short_pass_that_the_next_one_needs_costs_its_latency():
    timing = layer_timing(layer("average_pool", (1, 7, 7, 8), (1, 1, 1, 8), (7, 7)), TOY, BW)
    assert timing.pointwise_cycles == 48 * 6 + 2


def test_the_first_pool_of_resnet_takes_the_cycles_of_the_released_firmware():
    """27,288 = 9 taps · ⌈55·55 / 8⌉ · 128/16, from the identity products in Microsoft's BrainSlice firmware."""
    pool = layer("max_pool", (1, 112, 112, 64), (1, 55, 55, 64), (3, 3))
    timing = layer_timing(pool, "bw_a10", resolve_numbers("bw_a10", "bw_1s5e5m"))
    assert timing.pointwise_cycles == 27_288


@pytest.mark.parametrize(
    ("kinds", "extra_passes"),
    [
        ((), 0),
        (("bias", "relu"), 0),
        (("bias", "add", "relu"), 0),  # each multifunction unit adds once
        (("bias", "relu", "mul", "add", "sigmoid"), 0),
        (("mul", "add", "relu", "mul", "add", "relu"), 0),
        (("bias", "add", "sub"), 1),
        (("bias", "relu", "clip", "tanh"), 1),
        (("bias", "add", "max", "sub", "add"), 2),
    ],
)
def test_a_chain_is_free_as_far_as_the_multifunction_units_reach(kinds, extra_passes):
    bare = conv(8, 8, positions=(4, 8))
    timing = layer_timing(dataclasses.replace(bare, stages=stages(*kinds)), TOY, BW)
    assert timing.mvm_cycles == layer_timing(bare, TOY, BW).mvm_cycles
    assert timing.pointwise_cycles == extra_passes * (32 // 4) * 2


@pytest.mark.parametrize(
    ("head", "kinds", "passes"),
    [
        ("max_pool", ("add", "relu"), 4),
        ("max_pool", ("add", "max"), 5),
        ("average_pool", ("relu", "mul", "add"), 4),
        ("average_pool", ("mul", "relu", "mul"), 5),
    ],
)
def test_the_last_pass_of_a_pool_carries_the_stages(head, kinds, passes):
    timing = layer_timing(layer(head, (1, 8, 8, 8), (1, 4, 4, 8), (2, 2), stages=stages(*kinds)), TOY, BW)
    assert timing.pointwise_cycles == passes * (16 // 4) * 2


def test_pointwise_work_alone_is_one_pass_over_its_vectors():
    timing = layer_timing(layer("pointwise", (2, 3, 3, 9), (2, 3, 3, 9), stages=stages("add", "relu")), TOY, BW)
    assert (timing.pointwise_cycles, timing.compute_cycles) == (36 // 4 * 2, 18 + POINTWISE_FILL)
    assert timing.mapping is None
    assert timing.utilization == 0.0


@pytest.mark.parametrize(("channels", "passes"), [((8, 16, 5), 0), ((16, 3), 0), ((4, 8), 1), ((8, 3, 8), 1)])
def test_a_concat_is_addressing_where_every_part_starts_at_a_native_vector(channels, passes):
    total = sum(channels)
    part = layer("concat", (1, 2, 2, channels[0]), (1, 2, 2, total), input_channels=channels)
    vectors = 4 * math.ceil(total / 8)
    timing = layer_timing(part, TOY, BW)
    assert timing.compute_cycles == passes * (math.ceil(vectors / 4) * 2 + POINTWISE_FILL)


def test_a_concat_without_the_channels_of_its_inputs_is_a_mistake():
    with pytest.raises(AssertionError, match="names the channels"):
        layer_timing(layer("concat", (1, 2, 2, 8), (1, 2, 2, 16)), TOY, BW)


@pytest.mark.parametrize(("shape", "cycles"), [((1, 1, 1, 72), 0), ((1, 3, 3, 8), 3 * 2 + POINTWISE_FILL)])
def test_a_reshape_is_addressing_where_there_is_one_position(shape, cycles):
    assert layer_timing(layer("reshape", shape, (1, 1, 1, 72)), TOY, BW).compute_cycles == cycles


def test_an_upsample_is_addressing():
    assert layer_timing(layer("upsample", (1, 3, 3, 8), (1, 6, 3, 8), repeat=(2, 1)), TOY, BW).compute_cycles == 0


def test_stages_of_a_repacked_tensor_ride_on_the_repack():
    part = layer("reshape", (1, 3, 3, 8), (1, 1, 1, 72))
    chained = dataclasses.replace(part, stages=stages("relu"))
    assert layer_timing(chained, TOY, BW) == layer_timing(part, TOY, BW)


def test_weights_are_dense_and_padded_to_native_tiles():
    """A tile of bw_1s5e5m is 128 rows of 128·6 + 5 bits; one of msfp16 has eight exponents of 8 bits a row."""
    for key, row_bits in (("bw_1s5e5m", 128 * 6 + 5), ("msfp16", 128 * 8 + 8 * 8), ("fp32", 128 * 32)):
        timing = layer_timing(matmul(200, 130), "bw_a10", resolve_numbers("bw_a10", key))
        assert timing.weight_bytes == 4 * 128 * row_bits // 8


def test_loads_are_whole_bursts_at_the_rate_of_the_memory():
    timing = layer_timing(matmul(8, 8), TOY, BW)
    assert timing.weight_bytes == 8 * (8 * 6 + 5) / 8 == 53
    assert (timing.load_bytes, timing.load_cycles) == (56, 7)
    slow = dataclasses.replace(TOY, dram_efficiency=0.5, dram_burst_bytes=64)
    assert layer_timing(matmul(8, 8), slow, BW).load_cycles == 16


def test_a_segment_overlaps_each_load_with_the_layer_before():
    parts = [
        matmul(8, 8),
        conv(8, 8, positions=(10, 10)),
        matmul(80, 80),
        layer("max_pool", (1, 2, 2, 8), (1, 1, 1, 8), (2, 2)),
    ]
    a, b, c, d = (layer_timing(part, TOY, BW) for part in parts)
    timing = segment_timing(parts, TOY, BW)
    assert (a.load_cycles, b.load_cycles, c.load_cycles, d.load_cycles) == (7, 7, 663, 0)
    assert [row.compute_cycles for row in (a, b, c, d)] == [2 + FILL, 50 + FILL, 50 + FILL, 3 * 6 + 2 + POINTWISE_FILL]
    assert timing.cycles == 7 + (2 + FILL) + 663 + (50 + FILL) + (20 + POINTWISE_FILL)
    assert timing.layers == (a, b, c, d)
    assert timing.seconds == timing.cycles / 1e6
    assert timing.native_tiles == 1 + 1 + 100
    assert not timing.fits_on_chip
    assert segment_timing([matmul(32, 32)], TOY, BW).fits_on_chip  # 16 tiles, all there are


def test_an_empty_segment_takes_no_time():
    timing = segment_timing([], TOY, BW)
    assert (timing.cycles, timing.utilization, timing.fits_on_chip) == (0, 0.0, True)


def test_a_batch_computes_more_and_loads_its_weights_once():
    one, four = (layer_timing(matmul(32, 16, batch), TOY, BW) for batch in (1, 4))
    assert four.mvm_cycles == 4 * one.mvm_cycles
    assert four.load_cycles == one.load_cycles


def test_a_fill_hides_behind_the_layer_before_where_the_hazard_rule_and_the_data_allow():
    first, second = matmul(8, 8), dataclasses.replace(matmul(8, 8), head_output="z")
    after = dataclasses.replace(second, inputs=("y",))
    joined = dataclasses.replace(second, stages=(Stage("add", "s", operand="y"),))
    loads_nothing = {"dram_bytes_per_s": 1e12}
    in_order = dataclasses.replace(TOY, **loads_nothing)
    by_data = dataclasses.replace(TOY, hazard="data", **loads_nothing)
    base = segment_timing([first, second], in_order, BW).cycles
    assert base == 1 + 2 * (2 + FILL)
    assert segment_timing([first, second], by_data, BW).cycles == base - FILL
    for dependent in (after, joined):
        assert segment_timing([first, dependent], by_data, BW).cycles == base


def test_a_fill_hides_only_as_far_as_the_layer_before_lasts():
    device = dataclasses.replace(TOY, hazard="data", dram_bytes_per_s=1e12)
    short = layer("pointwise", (1, 1, 1, 8), (1, 1, 1, 8), stages=stages("relu"))
    other = dataclasses.replace(matmul(8, 8), inputs=("z",))
    assert 2 + POINTWISE_FILL < FILL
    assert segment_timing([short, other], device, BW).cycles == 2 + FILL


def test_a_transfer_is_a_latency_and_a_rate():
    assert transfer_seconds(0, "bw_a10") == 5e-6
    assert transfer_seconds(6_500_000, "bw_a10") == pytest.approx(1e-3 + 5e-6)


def test_the_wire_carries_whole_native_vectors():
    assert wire_bytes((1, 230, 230, 3), "bw_a10", "fp16") == 1240 * 128 * 2
    assert wire_bytes((1, 7, 7, 2048), "bw_a10", "fp16") == 784 * 128 * 2
    assert wire_bytes((3, 1, 1, 1000), "bw_s10", "bf16") == 3 * 1200 * 2
    assert wire_bytes((1, 1, 1, 1), TOY, "fp32") == 8 * 4


def resnet50(packing="channel"):
    """The 53 convolutions of ResNet-50 v1.5 and its classifier, as layers."""
    layers = []

    def add(size, inputs, outputs, kernel, stride, how=packing):
        window = Window((kernel, kernel), (stride, stride), (kernel // 2,) * 4)
        shapes = (1, size, size, inputs), (1, size // stride, size // stride, outputs)
        layers.append(
            Layer(f"conv{len(layers)}", "conv", (), ("x",), "y", *shapes, window=window, weight="w", packing=how)
        )

    add(224, 3, 64, 7, 2, "window")
    size, channels = 56, 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            add(size, channels, width, 1, 1)
            add(size, width, width, 3, stride)
            add(size // stride, width, 4 * width, 1, 1)
            if not block:
                add(size, channels, 4 * width, 1, stride)
            size, channels = size // stride, 4 * width
    return [*layers, matmul(2048, 1000)]


def test_resnet50_has_the_weight_tiles_of_the_released_firmware():
    """1,461 tiles: 52 convolutions tap by tap, 2 for the first one's window and 1, the identity of its first pool."""
    *convolutions, classifier = segment_timing(resnet50(), "bw_a10", resolve_numbers("bw_a10", "bw_1s5e5m")).layers
    assert len(convolutions) == 53
    assert convolutions[0].native_tiles == 2
    assert sum(timing.native_tiles for timing in convolutions) + 1 == 1461
    assert classifier.native_tiles == 16 * 8
    assert sum(timing.macs for timing in (*convolutions, classifier)) == 4_089_184_256


@pytest.mark.parametrize(
    ("key", "format", "packing", "tiles", "mvm_cycles"),
    [
        ("bw_a10", "bw_1s5e5m", "window", 1576, 314_512),
        ("bw_a10", "bw_1s5e5m", "channel", 1588, 352_144),
        ("bw_a10", "msfp16", "channel", 1576, 314_512),
        ("bw_s10", "bw_1s5e2m", "window", 294, 172_130),
        ("bw_s10", "bw_1s5e2m", "channel", 393, 322_050),
    ],
)
def test_resnet50_takes_the_tiles_and_cycles_of_an_independent_count(key, format, packing, tiles, mvm_cycles):
    device, taps = get_device(key), {"window": 1, "channel": None}[packing]
    block = device.resolve_format(format).block
    total_tiles = total_cycles = 0
    for part in resnet50(packing):
        kernel = math.prod(part.window.kernel) if part.window else 1
        channels, positions = part.in_shape[3], part.out_shape[1] * part.out_shape[2]
        if taps or channels == 3:
            columns = math.ceil(kernel * channels / device.native_dim)
        else:
            shared = max(1, device.native_dim // (math.ceil(channels / block) * block))
            columns = math.ceil(kernel / shared) * math.ceil(channels / device.native_dim)
        count = columns * math.ceil(part.out_shape[3] / device.native_dim)
        splits = [(p, device.tiles // p) for p in range(1, device.tiles + 1) if device.tiles % p == 0]
        total_tiles += count
        total_cycles += min(math.ceil(positions / p) * math.ceil(count / t) for p, t in splits) * device.cycles_per_mvm
    timing = segment_timing(resnet50(packing), device, resolve_numbers(device, format))
    counted = timing.native_tiles, sum(row.mvm_cycles for row in timing.layers)
    assert counted == (total_tiles, total_cycles) == (tiles, mvm_cycles)


HEADS = ("conv", "matmul", "depthwise", "max_pool", "average_pool", "pointwise", "concat", "reshape")


@st.composite
def any_layer(draw):
    head = draw(st.sampled_from(HEADS))
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(1, 300)), draw(st.integers(1, 300))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kernel = draw(st.tuples(st.integers(1, size[0]), st.integers(1, size[1])))
    positions = size[0] - kernel[0] + 1, size[1] - kernel[1] + 1
    chain = stages(*draw(st.lists(st.sampled_from(["bias", "add", "mul", "relu", "sigmoid"]), max_size=7)))
    packing = draw(st.sampled_from(["channel", "window"]))
    if head == "matmul":
        return dataclasses.replace(matmul(c, o, n), stages=chain)
    if head == "conv":
        return layer(head, (n, *size, c), (n, *positions, o), kernel, stages=chain, packing=packing, weight="w")
    if head in ("depthwise", "max_pool", "average_pool"):
        more = {"groups": c, "weight": "w"} if head == "depthwise" else {}
        return layer(head, (n, *size, c), (n, *positions, c), kernel, stages=chain, **more)
    if head == "concat":
        return layer(head, (n, *size, c), (n, *size, c + o), stages=chain, input_channels=(c, o))
    if head == "reshape":
        return layer(head, (n, *size, c), (n, 1, 1, math.prod(size) * c), stages=chain)
    return layer(head, (n, *size, c), (n, *size, c), stages=chain or stages("relu"))


#: A device, each layer waiting for the one before, and numbers that it computes in.
any_place = st.sampled_from(
    [
        (device, resolve_numbers(device, key, accumulator, order))
        for device in (
            TOY,
            get_device("bw_a10"),
            dataclasses.replace(get_device("bw_s10"), native_dim=320, hazard="in_order"),
        )
        for key in (("bw_1s5e5m", "fp32") if device is TOY else ("bw_1s5e5m", "msfp16", "mxint8", "fp32"))
        for accumulator, order in (("exact", "khwc"), ("fp32", "khwc"), ("fp16", "tree(3)"))
    ]
)


@given(any_layer(), any_place, st.integers(1, 5))
@settings(deadline=None)
def test_a_device_with_more_tile_engines_is_never_slower(part, place, more):
    device, numbers = place
    larger = dataclasses.replace(device, tiles=device.tiles + more)
    assert layer_timing(part, larger, numbers).compute_cycles <= layer_timing(part, device, numbers).compute_cycles


@given(any_layer(), any_place)
@settings(deadline=None)
def test_no_layer_beats_the_peak_or_has_more_weights_than_its_tiles(part, place):
    device, numbers = place
    timing = layer_timing(part, device, numbers)
    assert timing.compute_cycles * device.macs_per_cycle >= timing.macs == part.macs
    assert 0.0 <= timing.utilization <= 1.0
    assert timing.weight_bytes <= timing.load_bytes < timing.weight_bytes + device.dram_burst_bytes
    if timing.mapping:
        positions = math.prod(part.out_shape[:3])
        assert timing.mvm_cycles * device.macs_per_cycle >= timing.native_tiles * device.native_dim**2 * positions
        assert timing.native_tiles * device.native_dim**2 * positions >= part.macs


@given(st.lists(any_layer(), max_size=6), any_place)
@settings(deadline=None, max_examples=50)
def test_a_segment_takes_between_its_longer_part_and_both_parts(parts, place):
    timing = segment_timing(parts, *place)
    assert max(timing.compute_cycles, timing.load_cycles) <= timing.cycles <= timing.compute_cycles + timing.load_cycles
    assert timing == segment_timing(parts, *place)


@given(st.lists(any_layer(), min_size=1, max_size=6), any_place)
@settings(deadline=None, max_examples=50)
def test_a_segment_saves_what_each_load_hides_behind_the_layer_before(parts, place):
    rows = [layer_timing(part, *place) for part in parts]
    saves = sum(min(v.compute_cycles, w.load_cycles) for v, w in itertools.pairwise(rows))
    total = sum(row.compute_cycles + row.load_cycles for row in rows) - saves
    assert segment_timing(parts, *place).cycles == total


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.name)
def test_every_preset_times_resnet50(device):
    timing = segment_timing(resnet50(), device, resolve_numbers(device, "bw_1s5e5m"))
    assert 0.0 < timing.utilization < 1.0
    assert timing.seconds * device.peak_flops / 2 > timing.macs
