"""The times of chains, against times worked out by hand from docs/microarchitecture.md."""

import dataclasses

import pytest
from hypothesis import given, strategies as st

from fpgasim.npu import Device, resolve_numbers, simulate, simulation
from fpgasim.npu.isa import (
    EndChain,
    Instruction,
    Mem,
    MRd,
    MvMul,
    MWr,
    Register,
    SWr,
    VRd,
    VRelu,
    VvAdd,
    VWr,
    encode,
)
from fpgasim.npu.programs import Block, Program

# S = 4, Lm = 10, Lf = 6; a word in 1 cycle, dispatch in 3.
DEVICE = Device(
    "small",
    native_dim=8,
    lanes=2,
    tiles=2,
    mrf_tiles=64,
    mfus=2,
    clock_hz=100_000_000,
    mvm_latency=10,
    mfu_latency=3,
    dispatch_cycles=3,
    instruction_cycles=1,
    hazard="data",
    initial_vrf=256,
    addsub_vrf=256,
    multiply_vrf=256,
    dram_bytes_per_s=800_000_000.0,  # 8 bytes a cycle
    dram_efficiency=1.0,
    dram_burst_bytes=8,
)
IN_ORDER = dataclasses.replace(DEVICE, hazard="in_order")


def program(*blocks: list[Instruction] | Block, device: Device = DEVICE, accumulator: str = "exact") -> Program:
    made = tuple(b if isinstance(b, Block) else Block(tuple(encode(i) for i in b)) for b in blocks)
    return Program("test", device, resolve_numbers(device, "bw_1s5e5m", accumulator=accumulator), made)


def product(source: int, target: int, tile: int = 0, add: int | None = None) -> list[Instruction]:
    """v_rd, mv_mul, (vv_add,) v_wr, end_chain: four words or five."""
    middle = [] if add is None else [VvAdd(Mem.ADDSUB_VRF_0, add)]
    return [VRd(Mem.INITIAL_VRF, source), MvMul(tile), *middle, VWr(Mem.INITIAL_VRF, target, 3), EndChain()]


def pointwise(source: int, target: int, mem: Mem = Mem.INITIAL_VRF) -> list[Instruction]:
    return [VRd(mem, source), VRelu(), VWr(Mem.INITIAL_VRF, target, 3), EndChain()]


def sizes(rows: int = 1, columns: int = 1, x: int = 1) -> list[Instruction]:
    return [SWr(Register.ROWS, rows), SWr(Register.COLUMNS, columns), SWr(Register.ITERATIONS_X, x)]


def times(p: Program) -> list[tuple[int, int]]:
    """When each chain was issued and ended."""
    return [(row.issue, row.end) for row in simulate(p).chains]


def test_one_product_takes_fetch_dispatch_its_steps_and_the_latencies():
    # a = 4 words + 3; e = a + S + Lm + (n - 1)·S + Lf
    assert times(program(product(0, 1))) == [(7, 7 + 4 + 10 + 6)]


def test_a_chain_without_a_product_passes_the_matrix_unit_by():
    assert times(program(pointwise(0, 1))) == [(7, 7 + 4 + 6)]


@pytest.mark.parametrize(
    ("rows", "columns", "x", "pixels", "accumulator", "steps"),
    [
        (1, 1, 1, 1, "exact", 1),
        (3, 3, 1, 1, "exact", 5),  # nine tiles on two engines, rows run into each other
        (3, 3, 1, 1, "fp32", 6),  # an engine has whole rows
        (1, 3, 5, 1, "fp32", 15),
        (1, 3, 5, 2, "fp32", 9),  # three pairs of positions
        (1, 3, 5, 2, "exact", 9),
    ],
)
def test_steps_follow_how_the_tile_engines_share_the_work(rows, columns, x, pixels, accumulator, steps):
    words = [*sizes(rows, columns, x), SWr(Register.PIXELS, pixels), *product(0, 100)]
    p = program(words, accumulator=accumulator)
    ((issue, end),) = times(p)
    assert issue == 8 + 3
    assert end == issue + 4 + 10 + (steps - 1) * 4 + 6


def test_a_tree_of_both_engines_halves_the_columns():
    numbers = resolve_numbers(DEVICE, "bw_1s5e5m", accumulator="fp32", order="tree(2)")
    words = [*sizes(rows=3, columns=5), *product(0, 100)]
    p = dataclasses.replace(program(words), numbers=numbers)
    ((issue, end),) = times(p)
    assert end == issue + 4 + 10 + (3 * 3 - 1) * 4 + 6


def test_independent_products_follow_each_other_through_the_matrix_unit():
    p = program([*sizes(x=5), *product(0, 100), *product(0, 150)])
    (first, _), (second, _) = times(p)
    assert second == first + 5 * 4


def test_a_product_that_reads_what_another_writes_waits_for_its_end():
    p = program([*product(0, 1), *product(1, 2)])
    (_, first_end), (second, _) = times(p)
    assert second == first_end
    assert simulate(p).losses["dependency"] > 0


def test_an_operand_is_awaited_only_where_it_is_needed():
    write_operand = [VRd(Mem.INITIAL_VRF, 0), MvMul(0), VWr(Mem.ADDSUB_VRF_0, 5), EndChain()]
    p = program([*write_operand, *product(1, 2, add=5)])
    (_, first_end), (second, _) = times(p)
    assert second + 4 + 10 == first_end + 4


def test_a_chain_that_passes_the_matrix_unit_by_does_not_overtake():
    p = program([*sizes(x=5), *product(0, 100), *pointwise(50, 150)])
    (first, first_end), (second, second_end) = times(p)
    assert second + 4 == first + 4 + 10 + 5 * 4
    assert second_end > first_end


def test_in_order_everything_waits_for_everything_and_is_dispatched_again():
    p = program([*product(0, 1), *product(2, 3)], device=IN_ORDER)
    (_, first_end), (second, _) = times(p)
    assert second == first_end + 3


def test_two_writes_to_one_memory_take_two_turns_of_its_port():
    words = [
        *sizes(x=3),
        VRd(Mem.INITIAL_VRF, 0),
        MvMul(0),
        VWr(Mem.INITIAL_VRF, 9, 3),
        VWr(Mem.INITIAL_VRF, 10, 3),
        EndChain(),
    ]
    p = program(words)
    ((issue, end),) = times(p)
    assert end == issue + 4 + 10 + (2 * 3 - 1) * 4 + 6
    assert simulate(p).losses["port"] == 3 * 4


def test_a_full_queue_holds_the_fetch_up():
    device = dataclasses.replace(DEVICE, queue_chains=1)
    long = [*sizes(x=20), *product(0, 100)]
    words = [*long, *product(0, 130), *product(0, 160), *product(0, 190)]
    issues = [issue for issue, _ in times(program(words, device=device))]
    # With room for one the third chain's four words are fetched only when the second has gone.
    assert issues[2] == max(issues[1] + 20 * 4, issues[1] + 4 + 3)
    short = [*product(0, 10), *product(10, 20), *product(20, 30), *product(30, 40)]
    queued = [issue for issue, _ in times(program(short, device=device))]
    deep = [issue for issue, _ in times(program(short))]
    assert queued[1] == deep[1]
    assert queued[3] == max(deep[3], queued[2] + 4 + 3)


def test_a_full_scoreboard_holds_the_issue_up():
    device = dataclasses.replace(DEVICE, in_flight=1)
    rows = times(program([*product(0, 1), *product(2, 3)], device=device))
    assert rows[1][0] == rows[0][1]


def test_a_product_waits_for_its_tile_and_a_load_for_the_products_that_read_what_it_overwrites():
    load = [MRd(Mem.DRAM, 0), MWr(Mem.MATRIX_RF, 0), EndChain()]
    p = program([*load, *product(0, 1), *load, *product(2, 3)])
    tile = -(-(8 * (8 * 6 + 5)) // 8)
    cycles = -(-tile // 8)
    first_load, first, second_load, second = simulate(p).chains
    assert first_load.transfer == (3 + 3, 6 + cycles)
    assert first.issue == first_load.end
    assert first.wait == "weight load"
    assert second_load.issue == first.issue + 1  # queued at once,
    assert second_load.begin == first.issue + 4  # moved when the product has taken its step
    assert second.issue == second_load.end


def test_a_load_elsewhere_runs_beside_the_products():
    elsewhere = [MRd(Mem.DRAM, 0), MWr(Mem.MATRIX_RF, 7), EndChain()]
    alone, beside = program(product(0, 1)), program([*elsewhere, *product(0, 1)])
    assert times(beside)[1] == tuple(t + 3 for t in times(alone)[0])


def test_vectors_from_dram_take_at_least_their_transfer():
    p = program([*sizes(columns=6), *pointwise(0, 10, Mem.DRAM)])
    ((issue, end),) = times(p)
    transfer = 6 * 8 * 2 // 8
    assert transfer == 3 * 4  # three steps of two vectors hide it,
    assert end == issue + 4 + 2 * 4 + 6
    slow = dataclasses.replace(DEVICE, dram_bytes_per_s=400_000_000.0)
    ((issue, end),) = times(program([*sizes(columns=6), *pointwise(0, 10, Mem.DRAM)], device=slow))
    assert end == issue + 4 + (2 * transfer - 4) + 6  # at half the bandwidth they do not


chains = st.lists(
    st.one_of(
        st.builds(product, st.integers(0, 30), st.integers(60, 90), st.integers(0, 3), st.none() | st.integers(0, 9)),
        st.builds(pointwise, st.integers(0, 90), st.integers(100, 110), st.sampled_from([Mem.INITIAL_VRF, Mem.DRAM])),
        st.builds(
            lambda source, target: [MRd(Mem.DRAM, source), MWr(Mem.MATRIX_RF, target), EndChain()],
            st.integers(0, 9),
            st.integers(0, 3),
        ),
        st.builds(sizes, st.integers(1, 3), st.integers(1, 3), st.integers(1, 6)),
    ),
    max_size=12,
)
devices = st.builds(
    lambda hazard, queue, flight, cycles: dataclasses.replace(
        DEVICE, hazard=hazard, queue_chains=queue, in_flight=flight, instruction_cycles=cycles
    ),
    st.sampled_from(["in_order", "data"]),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 6),
)


@given(chains, devices)
def test_every_cycle_has_a_name(parts, device):
    timing = simulate(program([word for part in parts for word in part], device=device))
    assert sum(timing.losses.values()) == timing.cycles
    assert set(timing.losses) == set(simulation.CYCLES)
    assert min(timing.losses.values()) >= 0
    assert timing.losses["idle"] == 0  # the remainder: the sum alone would always be right
    assert timing.cycles == max([row.end for row in timing.chains], default=0)
    assert timing.stepped_cycles == timing.cycles


@given(chains, devices, st.integers(1, 40))
def test_turns_that_repeat_are_added_as_if_each_had_been_stepped(parts, device, turns):
    words = [word for part in [sizes(), *parts] for word in part]
    block = Block(tuple(encode(word) for word in words), repeat=turns)
    skipped = simulate(program(block, [*sizes(), *product(200, 201)], device=device))

    def step_all(_, turn, times):
        for _ in range(times):
            turn()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "repeat", step_all)
        stepped = simulate(program(block, [*sizes(), *product(200, 201)], device=device))
    assert (skipped.cycles, skipped.losses, skipped.dram_bytes) == (stepped.cycles, stepped.losses, stepped.dram_bytes)
    assert skipped.chains[-1].end == stepped.chains[-1].end


@pytest.mark.parametrize("last", [1, 400])
def test_a_loop_behind_a_full_queue_is_added_as_if_each_turn_had_been_stepped(last):
    """What was issued long ago still decides when the words behind the loop are fetched."""
    long = [*sizes(x=80), *product(0, 100)]
    before = [*long * 4, *sizes(x=last), *product(0, 100), *long * 3]
    turn, behind = long, [*[SWr(Register.WIDTH, 1)] * 3000, *product(200, 201)]
    blocks = Block(tuple(encode(w) for w in before)), Block(tuple(encode(w) for w in turn), repeat=12)
    device = dataclasses.replace(DEVICE, initial_vrf=4096)
    rolled = program(*blocks, behind, device=device)
    unrolled = program(blocks[0], *[Block(blocks[1].words)] * 12, behind, device=device)
    assert simulate(rolled).cycles == simulate(unrolled).cycles
    assert simulate(rolled).losses == simulate(unrolled).losses


def test_a_long_loop_is_not_stepped():
    block = Block(tuple(encode(word) for word in [*product(0, 1), *product(1, 0)]), repeat=1_000_000)
    timing = simulate(program(block))
    assert timing.cycles > 40_000_000
    assert timing.stepped_cycles < 1_000
    assert len(timing.chains) < 20


def test_macs_are_those_that_a_block_claims_and_the_rest_of_the_steps_is_padding():
    words = tuple(encode(word) for word in [*sizes(x=10), *product(0, 100)])
    full, partial = simulate(program(Block(words))), simulate(program(Block(words, macs=33)))
    assert full.macs == 10 * 64
    assert full.losses["useful"] == 10 * 64 // (2 * 8 * 2)  # one of the two engines has nothing to do
    assert partial.losses["useful"] == 2
    assert partial.losses["useful"] + partial.losses["padding"] == 40
    assert partial.utilization == pytest.approx(33 / (partial.cycles * 32))
