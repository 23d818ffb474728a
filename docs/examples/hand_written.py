"""A program for the engine written by hand: relu(W·x + b) of four vectors, and the same by NumPy."""

import numpy as np

import fpgasim as fs
from fpgasim.kernels import operand
from fpgasim.npu import Port, Program, assemble, execute, get_device, initial_state, resolve_numbers
from fpgasim.npu.isa import Mem
from fpgasim.npu.programs import native_tiles

TEXT = """
s_wr register=rows value=2
s_wr register=columns value=3
m_rd mem=dram                               # 2 x 3 tiles of weights
m_wr mem=matrix_rf
end_chain

s_wr register=iterations_x value=4          # four inputs of three vectors
v_rd mem=net_queue
v_wr mem=initial_vrf step_x=3
end_chain

v_rd mem=initial_vrf step_x=3
mv_mul address=0
vv_add mem=addsub_vrf_0                     # the bias: no step, so the same for all
v_relu
v_wr mem=net_queue
end_chain
"""

device = get_device("bw_a10")
n, numbers = device.native_dim, resolve_numbers(device, "bw_1s5e5m")
rng = np.random.default_rng(0)
w = rng.standard_normal((2 * n, 3 * n)).astype(np.float32) / 20
b = rng.standard_normal((2, n)).astype(np.float16).astype(np.float32)
x = rng.standard_normal((4, 3 * n)).astype(np.float32)

program = Program(
    "dense",
    device,
    numbers,
    assemble(TEXT),
    vectors={Mem.ADDSUB_VRF_0: b},
    tiles={Mem.DRAM: native_tiles(operand(fs.quantize(w, numbers.format)), n)},
    inputs=(Port("x", (4, 3 * n)),),
    outputs=(Port("y", (4, 2 * n)),),
)
y = execute(program, initial_state(program, {"x": x}))["y"]

exact = np.maximum(x @ w.T + b.reshape(-1), 0)
half = x.astype(np.float16).astype(np.float32)
blocks = [fs.quantize(a, numbers.format).dequantize().astype(np.float64) for a in (half, w)]
sums = (blocks[0] @ blocks[1].T).astype(np.float32).astype(np.float16)
same = np.maximum((sums + b.reshape(-1)).astype(np.float16), 0)

print(f"{y.shape} outputs, {np.abs(y - exact).max():.3f} from fp32 at most")
print(f"the same bits as blocks multiplied by NumPy: {np.array_equal(y, same)}")
