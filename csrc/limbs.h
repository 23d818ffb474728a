/* A sum of doubles without any rounding: a number of 30 limbs of 32 bits, least first, each kept in 64 bits so that
   2^31 terms can be added before a carry must be passed on. It reaches from 2^-512 to 2^448. Terms d * 2^s of a
   convolution lie inside: |d * 2^s| is 0 or at least 2^(-149 - 254 - 28), its last bit 52 places lower as a double,
   and at most 2^(128 + 254). */
#ifndef FS_LIMBS_H
#define FS_LIMBS_H
#include "common.h"

enum { FS_LIMBS = 30, FS_LIMB_BASE = -512 };

/* Adds a finite t. */
FS_INLINE void fs_limbs_add(int64_t *limbs, double t) {
  uint64_t u = fs_bits64(t);
  int64_t field = (int64_t)(u >> 52 & 0x7ff);
  if (field == 0) return; /* zero: a term is never a subnormal double */
  uint64_t digits = (u & 0xfffffffffffffu) | (uint64_t)1 << 52;
  int64_t position = field - 1075 - FS_LIMB_BASE;
  int64_t *at = limbs + (position >> 5);
  int shift = (int)(position & 31);
  uint64_t low = (digits & 0xffffffffu) << shift, high = (digits >> 32) << shift;
  int64_t sign = u >> 63 ? -1 : 1;
  at[0] += sign * (int64_t)(low & 0xffffffffu);
  at[1] += sign * (int64_t)((low >> 32) + (high & 0xffffffffu));
  at[2] += sign * (int64_t)(high >> 32);
}

/* The sum rounded once to float: ties to even, gradual underflow, infinity above the range. Spoils the limbs. */
FS_INLINE float fs_limbs_round(int64_t *limbs) {
  int64_t carry = 0;
  for (int i = 0; i < FS_LIMBS; i++) {
    int64_t v = limbs[i] + carry;
    carry = v >> 32;
    limbs[i] = v & 0xffffffff;
  }
  int negative = carry < 0;
  if (negative) { /* two's complement */
    carry = 1;
    for (int i = 0; i < FS_LIMBS; i++) {
      int64_t v = (~limbs[i] & 0xffffffff) + carry;
      carry = v >> 32;
      limbs[i] = v & 0xffffffff;
    }
  }
  int top = FS_LIMBS - 1;
  while (top >= 0 && limbs[top] == 0) top--;
  if (top < 0) return 0.0f;
  /* The upper 33 to 53 bits with a 1 for anything below them: rounding that to float is rounding the sum. */
  int64_t digits, rest = 0, below = top > 0 ? limbs[top - 1] : 0;
  int64_t last = FS_LIMB_BASE + 32 * (int64_t)(top - 1);
  for (int i = 0; i < top - 1; i++) rest |= limbs[i];
  if (limbs[top] >> 20) {
    digits = limbs[top] << 20 | below >> 12;
    rest |= below & 0xfff;
    last += 12;
  } else {
    digits = limbs[top] << 32 | below;
  }
  double value = (double)(digits | (rest != 0)) * fs_power(last);
  return (float)(negative ? -value : value);
}
#endif
