"""The cores that programs are run on: small, and as unlike each other as the page allows."""

from typing import Any

from fpgasim.npu import Device, Numbers, resolve_numbers


def _core(name: str, format: str, **sizes: Any) -> tuple[Device, Numbers]:
    device = Device(name, mrf_tiles=64, clock_hz=100_000_000, initial_vrf=256, addsub_vrf=256, multiply_vrf=64, **sizes)
    return device, resolve_numbers(device, format)


#: By name. The latencies of `plain` and `single` are the least that the RTL's stages allow.
CORES: dict[str, tuple[Device, Numbers]] = {
    device.name: (device, numbers)
    for device, numbers in (
        _core("plain", "bw_1s5e5m", native_dim=8, lanes=2, tiles=2, mfus=2, mvm_latency=15, mfu_latency=3,
              dispatch_cycles=5, instruction_cycles=2, queue_chains=4, in_flight=4, hazard="data"),
        _core("in_order", "msfp16", native_dim=16, lanes=4, tiles=3, mfus=2, mvm_latency=22, mfu_latency=4,
              dispatch_cycles=14, instruction_cycles=4, queue_chains=8, in_flight=16, hazard="in_order"),
        _core("packing", "msfp12", native_dim=32, lanes=8, tiles=4, mfus=3, mvm_latency=20, mfu_latency=5,
              dispatch_cycles=3, instruction_cycles=1, queue_chains=2, in_flight=3, hazard="data"),
        _core("single", "bw_1s5e2m", native_dim=12, lanes=12, tiles=5, mfus=1, mvm_latency=9, mfu_latency=3,
              dispatch_cycles=2, instruction_cycles=2, queue_chains=4, in_flight=1, hazard="data"),
        _core("slow", "mxint8", native_dim=32, lanes=8, tiles=1, mfus=2, mvm_latency=30, mfu_latency=9,
              dispatch_cycles=5, instruction_cycles=2, queue_chains=4, in_flight=4, hazard="data"),
    )
}  # fmt: skip
