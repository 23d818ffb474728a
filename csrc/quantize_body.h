/* fs_quantize for one variant; the rules stand in `fpgasim/numerics/scalar.py`. */
#include "common.h"

/* 32 bits that depend on seed and index alone (SplitMix64). */
FS_INLINE uint32_t random_bits(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (uint32_t)((z ^ z >> 31) >> 32);
}

/* v >= 0 as an integer; above 2^20 every format saturates, so the clamp only keeps the sum inside 64 bits. */
FS_INLINE double round_magnitude(double v, const int32_t rounding, uint32_t draw) {
  v = v < 1048576.0 ? v : 1048576.0;
  double whole = (double)(int64_t)v, rest = v - whole;
  if (rounding == FS_FLOOR) return whole;
  if (rounding == FS_NEAREST) return (double)(int64_t)(v + 0.5); /* v has 24 bits: exact from 0.25 on */
  if (rounding == FS_EVEN) return whole + (double)((rest > 0.5) | ((rest == 0.5) & ((int64_t)v & 1)));
  return (double)(((uint64_t)(v * 4294967296.0) + draw) >> 32);
}

/* The code of any finite x: every scaling is by a power of two and exact in double. */
FS_INLINE int32_t encode_any(const fs_format *f, float x, int32_t s, const int32_t rounding, uint32_t draw) {
  double v = fabs((double)x) * fs_power(-s);
  int negative = fs_bits(x) >> 31 != 0, m = f->mantissa_bits;
  if (f->element_exponent_bits == 0) {
    double q = round_magnitude(v * fs_power(m - 1), rounding, draw);
    int32_t code = q < f->max_code ? (int32_t)q : f->max_code;
    return negative ? -code : code;
  }
  int64_t p = (int64_t)(fs_bits64(v) >> 52) - 1023;
  if (p < f->element_emin) p = f->element_emin;
  int32_t digits = (int32_t)round_magnitude(v * fs_power(m - p), rounding, draw);
  /* 1 << m digits are the first of the next binade, so a carry needs no care: the codes are consecutive. */
  int32_t code = ((int32_t)(p - f->element_emin) << m) + digits;
  if (code > f->max_code) code = f->max_code;
  return code | negative << (m + f->element_exponent_bits);
}

FS_INLINE void encode_slowly(const fs_format *f, const float *x, int64_t n, int32_t s, const int32_t rounding,
                             uint64_t seed, uint64_t index, void *codes) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t draw = rounding == FS_STOCHASTIC ? random_bits(seed, index + (uint64_t)i) : 0;
    int32_t code = encode_any(f, x[i], s, rounding, draw);
    if (f->code_bytes == 1) ((int8_t *)codes)[i] = (int8_t)code;
    else ((int16_t *)codes)[i] = (int16_t)code;
  }
}

/* The code of x / 2^s for even rounding: adding 1.5 * 2^23 rounds to an integer in the low bits. */
FS_INLINE int32_t encode_integer(float v, const float high) {
  v = v > high ? high : v;
  v = v < -high ? -high : v;
  return (int32_t)(fs_bits(v + 12582912.0f) - 0x4B400000u);
}

FS_INLINE void encode_int8(const fs_format *f, const float *x, int64_t n, int32_t s, int8_t *codes) {
  const float scale = (float)fs_power(f->mantissa_bits - 1 - s), high = (float)f->max_code;
  for (int64_t i = 0; i < n; i++) codes[i] = (int8_t)encode_integer(x[i] * scale, high);
}

FS_INLINE void encode_int16(const fs_format *f, const float *x, int64_t n, int32_t s, int16_t *codes) {
  const float scale = (float)fs_power(f->mantissa_bits - 1 - s), high = (float)f->max_code;
  for (int64_t i = 0; i < n; i++) codes[i] = (int16_t)encode_integer(x[i] * scale, high);
}

/* What the codes of float elements are made with. */
typedef struct {
  float smallest, magic;
  int32_t drop, half, offset, largest, sign;
} fs_elements;

FS_INLINE fs_elements fs_elements_of(const fs_format *f) {
  const int32_t m = f->mantissa_bits, drop = 23 - m;
  return (fs_elements){(float)fs_power(f->element_emin), (float)fs_power(f->element_emin + drop), drop,
                       (1 << (drop - 1)) - 1, (126 + f->element_emin) << m, f->max_code, m + f->element_exponent_bits};
}

/* Even rounding of v = x / 2^s: in the bits for normal elements, by an addition for subnormal ones. */
FS_INLINE int32_t encode_float(const fs_elements *e, float v) {
  uint32_t u = fs_bits(v), bits = u & 0x7fffffffu;
  float magnitude = fs_float(bits);
  int32_t normal = (int32_t)((bits + (uint32_t)e->half + (bits >> e->drop & 1)) >> e->drop) - e->offset;
  int32_t subnormal = (int32_t)(fs_bits(magnitude + e->magic) - fs_bits(e->magic));
  int32_t code = magnitude < e->smallest ? subnormal : normal;
  code = code > e->largest ? e->largest : code;
  return code | (int32_t)(u >> 31) << e->sign;
}

FS_INLINE void encode_floats(const fs_format *f, const float *x, int64_t n, int32_t s, uint8_t *codes) {
  const float scale = (float)fs_power(-s);
  const fs_elements e = fs_elements_of(f);
  for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)encode_float(&e, x[i] * scale);
}

/* The largest magnitude of n numbers as bits: floats order like their bits, infinities and NaNs come last. */
FS_INLINE int32_t largest_bits(const float *x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    int32_t u = (int32_t)(fs_bits(x[i]) & 0x7fffffffu);
    largest = u > largest ? u : largest;
  }
  return largest;
}

FS_INLINE int32_t shared_exponent(const fs_format *f, int32_t largest) {
  if (largest >= 0x7f800000) return FS_NAN_EXPONENT;
  int32_t e = -126;
  if (largest >= 0x00800000) e = (largest >> 23) - 127;
  else if (largest > 0) e = -118 - __builtin_clz((unsigned)largest); /* floor(log2) of a subnormal */
  int32_t s = e - f->element_emax;
  if (s < f->exponent_low) return f->exponent_low;
  return s > f->exponent_high ? f->exponent_above : s;
}

/* One block of n numbers, the first of which has position `index` in the tensor. */
FS_INLINE int16_t encode_block(const fs_format *f, const float *x, int64_t n, int32_t rounding, uint64_t seed,
                               uint64_t index, void *codes) {
  int32_t s = shared_exponent(f, largest_bits(x, n));
  if (s == FS_NAN_EXPONENT) {
    memset(codes, 0, (size_t)(n * f->code_bytes));
    return FS_NAN_EXPONENT;
  }
  int is_float = f->element_exponent_bits > 0;
  /* The product with a float scale is exact, or so small that it rounds to zero: if the scale is a normal float. */
  int32_t scale = (is_float ? 0 : f->mantissa_bits - 1) - s;
  if (rounding == FS_EVEN && scale >= -126 && scale <= 127) {
    if (is_float) encode_floats(f, x, n, s, codes);
    else if (f->code_bytes == 1) encode_int8(f, x, n, s, codes);
    else encode_int16(f, x, n, s, codes);
    return (int16_t)s;
  }
  if (rounding == FS_EVEN) encode_slowly(f, x, n, s, FS_EVEN, seed, index, codes);
  else if (rounding == FS_NEAREST) encode_slowly(f, x, n, s, FS_NEAREST, seed, index, codes);
  else if (rounding == FS_FLOOR) encode_slowly(f, x, n, s, FS_FLOOR, seed, index, codes);
  else encode_slowly(f, x, n, s, FS_STOCHASTIC, seed, index, codes);
  return (int16_t)s;
}

/* As encode_block, with the loops unrolled for the usual sizes. */
FS_INLINE int16_t encode_sized(const fs_format *f, const float *x, int64_t n, int32_t rounding, uint64_t seed,
                               uint64_t index, void *codes) {
  if (n == 16) return encode_block(f, x, 16, rounding, seed, index, codes);
  if (n == 32) return encode_block(f, x, 32, rounding, seed, index, codes);
  return encode_block(f, x, n, rounding, seed, index, codes);
}

/* With `padded`, tails are filled up with zeros to whole blocks. */
static __attribute__((noinline)) void quantize_rows(const fs_format *f, const float *x, int64_t rows, int64_t n,
                                                    int32_t rounding, uint64_t seed, int32_t padded, char *codes,
                                                    int16_t *exponents) {
  const int64_t block = f->block, blocks = (n + block - 1) / block, bytes = f->code_bytes;
#ifdef FS_QUANTIZE_FAST
  if (rounding == FS_EVEN && block % 16 == 0 && n % block == 0) {
    for (int64_t b = 0; b < rows * blocks;) {
      b += FS_QUANTIZE_FAST(f, x + b * block, rows * blocks - b, codes + b * block * bytes, exponents + b);
      for (int64_t end = b + 16; b < rows * blocks && b < end; b++)
        exponents[b] = encode_sized(f, x + b * block, block, FS_EVEN, seed, 0, codes + b * block * bytes);
    }
    return;
  }
#endif
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t left = n - b * block, count = left < block ? left : block, first = row * n + b * block;
      const float *at = x + first;
      *exponents++ = encode_sized(f, at, count, rounding, seed, (uint64_t)first, codes);
      codes += count * bytes;
      if (padded && count < block) {
        memset(codes, 0, (size_t)((block - count) * bytes));
        codes += (block - count) * bytes;
      }
    }
  }
}

void FS_FN(fs_quantize)(const fs_format *f, const float *x, int64_t rows, int64_t n, int32_t rounding, uint64_t seed,
                        void *codes, int16_t *exponents) {
  fs_fp_state state = fs_fp_enter();
  quantize_rows(f, x, rows, n, rounding, seed, 1, codes, exponents);
  fs_fp_leave(state);
}

#include "quantize_across_body.h"
