/* Runs of blocks, 16 at a time, after quantize_16(f, x, v, codes, exponents), which takes blocks of 16 * v numbers, or
   writes nothing and returns 0 where it cannot take one. */
FS_INLINE int64_t quantize_run(const fs_format *f, const float *x, const int64_t v, int64_t blocks, char *codes,
                               int16_t *exponents) {
  const int64_t bytes = 16 * v * f->code_bytes;
  int64_t b = 0;
  while (b + 16 <= blocks && quantize_16(f, x + b * v * 16, v, codes + b * bytes, exponents + b)) b += 16;
  return b;
}

/* What quantize_body.h asks first: whole blocks of a multiple of 16 numbers one after the other, ties to even. Returns
   how many are done; the next 16, or all that are left, need the slow way. */
static __attribute__((noinline, unused)) int64_t quantize_fast(const fs_format *f, const float *x, int64_t blocks,
                                                               char *codes, int16_t *exponents) {
  switch (f->block) { /* with a constant width the loops unroll */
    case 16: return quantize_run(f, x, 1, blocks, codes, exponents);
    case 32: return quantize_run(f, x, 2, blocks, codes, exponents);
    case 64: return quantize_run(f, x, 4, blocks, codes, exponents);
    case 128: return quantize_run(f, x, 8, blocks, codes, exponents);
    default: return quantize_run(f, x, f->block / 16, blocks, codes, exponents);
  }
}
#define FS_QUANTIZE_FAST quantize_fast
