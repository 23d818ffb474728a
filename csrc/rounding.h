/* The pointwise unit's numbers: rounding to its type. Values of fp16 and bf16 are kept in floats. */
#ifndef FS_ROUNDING_H
#define FS_ROUNDING_H
#include "common.h"

/* x rounded once to fp16, ties to even, without saturation: 65520 and more becomes 65536 or more. x is exact, or a
   float sum of two fp16 values. `high` is raised to x's exponent bits.
   Adding 1.5 * 2^13 * 2^e to x, e its exponent but at least fp16's lowest, -14, leaves x's multiples of fp16's last
   place, 2^(e-10), as float's last place: the sum is rounded there and the difference is exact. */
FS_INLINE float round_fp16_beyond(float x, int32_t *high) {
  const uint32_t u = fs_bits(x);
  int32_t e = (int32_t)(u & 0x7f800000u);
  *high = e > *high ? e : *high;
  e = e > (112 << 23) ? e : 113 << 23;
  e = e < (143 << 23) ? e : 143 << 23;
  const float place = fs_float((uint32_t)(e + (13 << 23) + 0x400000));
  return fs_float((fs_bits((x + place) - place) & 0x7fffffffu) | (u & 0x80000000u)); /* the sign, also of a zero */
}

/* Exponent bits from which on a number may saturate in fp16: those of 2^15. */
enum { FS_FP16_HIGH = 142 << 23 };

/* x rounded once to fp16; saturates at 65504. */
FS_INLINE float round_fp16(float x) {
  int32_t high = 0;
  float y = round_fp16_beyond(x, &high);
  y = y > 65504.0f ? 65504.0f : y;
  return y < -65504.0f ? -65504.0f : y;
}

#ifdef FS_LANES
typedef float v_values __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
typedef int32_t v_bits __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));

/* x rounded once to fp16, with infinity for what lies beyond. A variant whose CPU converts to fp16 and back defines
   FS_ROUND_FP16, which does so. */
FS_INLINE v_values round_fp16_values(v_values x) {
#ifdef FS_ROUND_FP16
  return (v_values)FS_ROUND_FP16(x);
#else
  int32_t high = 0;
  for (int i = 0; i < FS_LANES; i++) {
    const float y = round_fp16_beyond(x[i], &high);
    x[i] = y > 65504.0f ? INFINITY : y < -65504.0f ? -INFINITY : y;
  }
  return x;
#endif
}
#endif

/* x rounded once to bf16, ties to even. */
FS_INLINE float round_bf16(float x) {
  const uint32_t u = fs_bits(x);
  return x != x ? x : fs_float((u + 0x7fffu + (u >> 16 & 1)) & 0xffff0000u);
}

FS_INLINE float round_to(const int pointwise, float x) {
  return pointwise == FS_FP16 ? round_fp16(x) : pointwise == FS_BF16 ? round_bf16(x) : x;
}

/* The product of two values of the type, rounded to bf16. It is exact in float down to 2^-133; below 2^-126 it must be
   rounded to a multiple of that, once. */
FS_INLINE float multiply_bf16(float a, float b) {
  const float p = a * b;
  const double exact = fabs((double)a * (double)b), magic = 0x1.8p-81;
  const float tiny = (float)((exact + magic) - magic);
  return exact < 0x1p-126 ? fs_float(fs_bits(tiny) | (fs_bits(p) & 0x80000000u)) : round_bf16(p);
}

/* The product of two values of the type, rounded once to it; an fp16 product is exact in float. */
FS_INLINE float multiply(const int pointwise, float a, float b) {
  return pointwise == FS_BF16 ? multiply_bf16(a, b) : round_to(pointwise, a * b);
}

/* As round_to, but fp16 does not saturate yet: `saturate` does so where `high` asks for it. */
FS_INLINE float round_beyond(const int pointwise, float x, int32_t *high) {
  return pointwise == FS_FP16 ? round_fp16_beyond(x, high) : round_to(pointwise, x);
}

/* Limits n numbers from `round_beyond` to +-65504; returns how many lay beyond. */
FS_INLINE int64_t saturate(int32_t high, int64_t n, float *v) {
  int64_t beyond = 0;
  if (high < FS_FP16_HIGH) return 0;
  for (int64_t i = 0; i < n; i++) {
    beyond += fabsf(v[i]) > 65504.0f;
    v[i] = v[i] > 65504.0f ? 65504.0f : v[i] < -65504.0f ? -65504.0f : v[i];
  }
  return beyond;
}

FS_INLINE float add(const int pointwise, float a, float b) { return round_to(pointwise, a + b); }
#endif
