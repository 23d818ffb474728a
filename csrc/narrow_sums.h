/* Sums of fp16 and bf16, kept in floats, in vectors of FS_LANES, rounded once from any float term. */
#ifndef FS_NARROW_SUMS_H
#define FS_NARROW_SUMS_H
#include "common.h"

typedef int32_t v_int32 __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
typedef float v_float __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));

FS_INLINE v_int32 choose(v_int32 mask, v_int32 yes, v_int32 no) { return (mask & yes) | (~mask & no); }

/* a + b rounded to odd: where the sum is not exact, its last bit is made 1. A number that is then rounded to at least
   two bits less comes out as if it had been rounded once (Boldo and Melquiond, 2008). The error is that of Knuth's
   2Sum, exact; nothing overflows in between, as |a| is less than the largest float (Boldo et al., 2017). */
FS_INLINE v_float add_to_odd(v_float a, v_float b) {
  const v_float total = a + b, left = total - b, right = total - left, error = (a - left) + (b - right);
  const v_int32 bits = (v_int32)total;
  const v_int32 inexact = (error != 0.0f) & ((bits & 1) == 0) & ((bits & 0x7fffffff) < 0x7f800000);
  return (v_float)(bits + (inexact & (((bits ^ (v_int32)error) >> 31) | 1)));
}

/* x rounded once to fp16, ties to even; saturates at 65504. */
FS_INLINE v_float round_to_fp16(v_float x) {
  const v_int32 u = (v_int32)x, v = u & 0x7fffffff;
  const v_float magnitude = (v_float)v;
  const v_int32 normal = (v + 0xfff + (v >> 13 & 1)) & ~0x1fff;
  const v_int32 subnormal = (v_int32)((magnitude + 0.75f) - 0.75f); /* a multiple of 2^-24 */
  v_int32 y = choose(magnitude < 6.103515625e-05f, subnormal, normal);
  y = choose(magnitude >= 65504.0f, (v_int32)(v_float){0} + 0x477fe000, y);
  y = choose(magnitude != magnitude, v, y);
  return (v_float)(y | (u & INT32_MIN));
}

/* acc + t rounded once to fp16. Beyond 2^18 the sum saturates whatever acc is. */
FS_INLINE v_float add_fp16(v_float acc, v_float t) {
  const v_int32 u = (v_int32)t, bound = (v_int32){0} + 0x48800000; /* 2^18 */
  const v_float bounded = (v_float)(choose((u & 0x7fffffff) > bound, bound, u & 0x7fffffff) | (u & INT32_MIN));
  return round_to_fp16(add_to_odd(acc, (v_float)choose(t != t, u, (v_int32)bounded)));
}

/* acc + t rounded once to bf16. */
FS_INLINE v_float add_bf16(v_float acc, v_float t) {
  const v_float x = add_to_odd(acc, t);
  const v_int32 u = (v_int32)x, v = u & 0x7fffffff;
  const v_int32 y = (v + 0x7fff + (v >> 16 & 1)) & ~0xffff;
  return (v_float)choose(x != x, u, y | (u & INT32_MIN));
}
#endif
