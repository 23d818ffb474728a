"""Emitted programs where memories are too small: stripes, tensors in DRAM, weights and constants that stream."""

import dataclasses
import itertools

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.compiler import emit
from fpgasim.errors import CompileError, InputError
from fpgasim.npu import Device
from fpgasim.npu.chains import MatrixChain, VectorChain
from fpgasim.npu.isa import Mem

from .emitted import NUMBERS, assert_same_bits, chains_of, loads, segment_of, small, touches, vector_chains
from .test_emission import NETWORKS, Net, bottleneck, densely


def deep() -> Net:
    """Convolutions and a pool whose tensors are far larger than what goes in and out."""
    net = Net(7)
    x = net.conv(net.conv("x", 3, 20, 3), 20, 20, 3)
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = net.conv(x, 20, 36, 3, strides=[2, 2])
    net.conv(x, 36, 20, 1)
    net.nodes[-1].output[0] = "result"
    return net


#: Devices on which nothing fits at once: files of vectors, of operands, of tiles.
TIGHT = {
    "little of everything": small(initial_vrf=300, addsub_vrf=40, multiply_vrf=8, mrf_tiles=40),
    "operands in portions": small(addsub_vrf=40, multiply_vrf=10),
    "one MFU": small(native_dim=32, tiles=2, mfus=1, initial_vrf=160, mrf_tiles=24, multiply_vrf=6, addsub_vrf=24),
    "three MFUs": small(native_dim=32, lanes=8, tiles=3, mfus=3, initial_vrf=140, mrf_tiles=20, multiply_vrf=4,
                        addsub_vrf=20),
}  # fmt: skip


@pytest.mark.parametrize("device", TIGHT)
@pytest.mark.parametrize("network", NETWORKS)
def test_small_memories_change_no_bit(network, device):
    assert_same_bits(segment_of(NETWORKS[network](), TIGHT[device], "tree", batch=2), weights="stream")


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("vectors", [1550, 2050, 2650])
def test_a_run_of_layers_goes_through_the_image_in_stripes_and_makes_every_row_once(vectors, numbers):
    """At 40 by 37 the first two tensors take 3,000 vectors each; what goes in and out takes 510."""
    device = small(initial_vrf=vectors)
    segment = segment_of(deep().model(("N", 3, 40, 37), "result"), device, numbers)
    program = assert_same_bits(segment)
    assert not touches(program, Mem.DRAM), "nothing need leave the chip"
    assert len(program.blocks) > 2 * len(segment.layers)
    assert sum(block.macs or 0 for block in program.blocks) == sum(layer.macs for layer in segment.layers)


def test_a_tensor_that_waits_long_is_kept_in_dram():
    """A skip connection past two larger tensors, as in a U-shaped network."""
    net = Net(8)
    x = net.conv("x", 3, 20, 3)
    y = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(net.conv(y, 20, 64, 3), 64, 20, 3)))
    net.op("Gemm", y, net.constant(net.rng.standard_normal((20, 20)).astype(np.float32)), output="rows")
    net.op("Concat", x, x, axis=1, output="result")
    device = small(initial_vrf=1500, addsub_vrf=300)
    program = assert_same_bits(
        segment_of(net.model(("N", 3, 20, 20), "result", "rows", ranks={"rows": 2}), device, "fp32")
    )
    assert touches(program, Mem.DRAM)


def test_a_sum_takes_the_place_of_an_operand_where_there_is_no_other_room():
    """Residuals that follow each other: each is the operand of the next, and the file has room for one."""
    net = Net(12)
    x = net.conv("x", 20, 20)
    for _ in range(3):
        x = net.op("Add", net.conv(x, 20, 20, relu=False), x)
    net.op("Relu", x, output="result")
    program = assert_same_bits(segment_of(net.model((1, 20, 6, 6), "result"), small(addsub_vrf=110)))
    in_place = [
        chain
        for chain in vector_chains(program)
        if chain.tiles and _writes(chain, Mem.ADDSUB_VRF_1) and any(s.mem == Mem.ADDSUB_VRF_1 for s in chain.operands)
    ]
    assert len(in_place) == 2


def test_weights_that_fit_are_pinned_and_others_stream_one_layer_ahead():
    model = bottleneck()
    pinned = assert_same_bits(segment_of(model, small()))
    assert not loads(pinned)
    tiles = len(pinned.tiles[Mem.MATRIX_RF].mantissas)
    streamed = assert_same_bits(segment_of(model, small(mrf_tiles=tiles - 1)))
    assert sum(chain.tiles for chain in loads(streamed)) == tiles
    moving = [chain for chain in chains_of(streamed) if chain.tiles]
    kinds = ["load" if isinstance(chain, MatrixChain) else "product" for chain in moving]
    assert kinds[:3] == ["load", "load", "product"], "the second layer's tiles come while the first one works"


def test_a_layer_of_more_tiles_than_half_the_file_comes_in_portions_of_rows():
    net = Net(9)
    x = net.op("Flatten", net.op("GlobalAveragePool", net.conv("x", 20, 64)))
    net.op("Gemm", x, net.constant(net.rng.standard_normal((64, 90)).astype(np.float32)), output="rows")
    device = small(mrf_tiles=16)
    program = assert_same_bits(segment_of(net.model(("N", 20, 4, 4), "rows", ranks={"rows": 2}), device, "tree", 2))
    assert [chain.tiles for chain in loads(program)] == [8, 8, 8, 8]
    for before, after in itertools.pairwise(loads(program)):
        assert not before.written.overlaps(after.written)


def test_a_row_of_tiles_that_does_not_fit_is_an_error():
    net = Net(10)
    net.conv("x", 64, 20, 3)
    net.nodes[-1].output[0] = "result"
    segment = segment_of(net.model((1, 64, 4, 4), "result"), small())
    segment = dataclasses.replace(segment, device=small(mrf_tiles=35))  # which the capability check would refuse
    message = r"layer 'n0': one row of outputs takes 36 tiles, and matrix_rf has room for 35"
    with pytest.raises(CompileError, match=message):
        emit(segment)


def test_constants_that_do_not_fit_come_from_dram_before_use():
    program = assert_same_bits(segment_of(densely(), small(multiply_vrf=4)))
    assert Mem.DRAM in program.vectors
    assert any(chain.dram_read and _writes(chain, Mem.MULTIPLY_VRF_0) for chain in vector_chains(program))


def test_operands_of_a_multiply_unit_are_brought_in_portions():
    net = Net(11)
    x = net.conv("x", 20, 40, relu=False)
    net.op("Mul", net.op("Sigmoid", x), x, output="result")
    program = assert_same_bits(segment_of(net.model((1, 20, 5, 5), "result"), small(multiply_vrf=16)))
    portions = [chain for chain in vector_chains(program) if _writes(chain, Mem.MULTIPLY_VRF_0)]
    assert len(portions) == 5, "five positions of three vectors each fit"
    assert all(span.high <= 16 for chain in portions for span in chain.written)


@pytest.mark.parametrize(
    ("device", "weights", "message"),
    [
        (small(mrf_tiles=20), "pin", r"weights='pin': \d+ tiles do not fit, matrix_rf has room for 20"),
        (small(addsub_vrf=10), "pin", r"weights='pin': \d+ vectors of constants do not fit into addsub_vrf_0"),
        (small(initial_vrf=200), "pin", r"weights='pin': tensor '\w+' does not fit into initial_vrf"),
        (small(initial_vrf=60), "auto", r"layer '\w+': .* takes \d+ vectors, and initial_vrf has 60"),
        (small(initial_vrf=2), "auto", r"layer 'n0': its constants take 3 vectors, and initial_vrf has 2"),
        (small(addsub_vrf=0), "auto", r"layer 'n\d+': a register file has no room for one vector of an operand"),
    ],
)
def test_what_does_not_fit_is_named(device: Device, weights: str, message: str):
    segment = dataclasses.replace(segment_of(bottleneck(), small()), device=device)
    with pytest.raises(CompileError, match=message):
        emit(segment, weights=weights)


def test_a_file_that_is_too_small_for_the_constants_is_named_with_a_layer():
    net = Net(13)
    net.op("Relu", net.op("Add", "x", "x"), output="result")
    segment = segment_of(net.model((1, 20, 2, 2), "result"), small())
    for depth in range(3):
        with pytest.raises(CompileError, match=rf"layer 'n0': .* take 3 vectors, and initial_vrf has {depth}$"):
            emit(dataclasses.replace(segment, device=small(initial_vrf=depth)))


def test_wrong_settings_are_named():
    with pytest.raises(InputError, match="weights='keep'; auto, pin or stream would do"):
        emit(segment_of(bottleneck(), small()), weights="keep")


def _writes(chain: VectorChain, mem: Mem) -> bool:
    return any(span.mem == mem for span in chain.written)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50_slim", "efficientnet_lite0"])
def test_a_whole_network_has_the_bits_of_the_fused_path(name):
    """At 64 by 64, so that no memory of the device is too small for anything but the weights."""
    model = fs.zoo.build(name)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 64
    device = fs.npu.get_device("bw_a10")
    program = assert_same_bits(segment_of(model, device, "exact"))
    assert bool(loads(program)) == (name == "resnet50_slim")
