"""ResNet-50 on three devices: where the time goes. Weights do not matter for cycles, so they are random."""

import fpgasim as fs

graph = fs.zoo.load("resnet50")
print("device  cycles     ms on FPGA  utilization  busiest layer")
for name in ("bw_s5", "bw_a10", "bw_s10"):
    timing = fs.runtime.plan_timing(fs.partition(graph, name, "bw_1s5e5m", objective="coverage"))
    (segment,) = timing.segments
    layer, row = max(segment.rows, key=lambda pair: pair[1].compute_cycles)
    share = row.compute_cycles / segment.timing.compute_cycles
    cycles = f"{timing.cycles:9,}  {timing.milliseconds:10.3f}  {timing.utilization:11.1%}"
    print(f"{name:6}  {cycles}  {layer.name} ({share:.0%})")
