"""How much signal each format keeps of normally distributed numbers, and what it costs in memory."""

import numpy as np

import fpgasim as fs
from fpgasim.numerics import CATALOGUE

x = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
signal = np.sum(x.astype(np.float64) ** 2)

print("format      bits/element  QSNR (dB)")
for name, fmt in CATALOGUE.items():
    noise = np.sum((x - fs.quantize(x, name).dequantize().astype(np.float64)) ** 2)
    qsnr = 10 * np.log10(signal / noise) if noise else np.inf
    print(f"{name:10}  {fmt.bits_per_element:12.2f}  {qsnr:9.1f}")
