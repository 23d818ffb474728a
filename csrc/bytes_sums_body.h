/* How a tile of the byte convolution turns dot products into terms and adds them up, for bytes_conv_body.h.

   A dot product d of bytes ends as the float 1.5 * 2^23 + d (fs_bytes_pack); one fused multiply-subtract turns that
   into d * 2^sw, without rounding, and the next fused multiply-add adds that times 2^sx to the sum, rounding once:
   two operations, where converting d would take a third. One of words may be longer and is converted; where all terms
   of a filter have the same 2^sw, the sum is multiplied by that at the end.

   Exact sums are kept in float64, to which terms are widened. fs_bytes_fit says when all this is exact.

   Sums of p = 11 or 8 bits, fp16 and bf16, are rounded from s = acc + t, which mostly is exact in float: with k = 24
   - p, s * 2^k - (s * 2^k - s) is s rounded to p bits, ties to even, each half being one fused operation. For s = m *
   2^e with 2^23 <= m < 2^24, the subtrahend (2^k - 1) * m has 24 + k bits and is rounded to a multiple of 2^k, so
   that the difference is the multiple of 2^k nearest to m; in a tie m * 2^k is an even multiple, and so the even
   subtrahend leaves an even result. Only below m = 2^23 * (1 + 2^-k) has the subtrahend one bit less, and there m
   rounds to 2^23 both ways. Where s is smaller than 1.5 times fp16's smallest normal number, 1.5 times that takes the
   place of s in the products, which makes the last place 2^-24.

   Two things go wrong in that, rarely, and both show afterwards at no cost:
   - s was not exact. Only the addition of t may raise the CPU's flag for that; the roundings on purpose are quiet.
   - fp16 saturates. Sums are kept times 2^100, so that 2^13 * s overflows from 2^15 on, and stays infinite or NaN.
   Such a tile is summed again, carefully: s is rounded to odd, its last bit 1 where it is not exact (Boldo and
   Melquiond, 2008), and limited.

   A variant defines FS_DOT(d, x, w), which adds to each lane of d the products of four bytes of x by four of w, or of
   two words by two, FS_FMADD, FS_FMSUB and FS_WIDEN, float64 of FS_LANES / 2 floats. For quick sums of fp16 and bf16
   it defines FS_FMSUB_QUIET, which raises no flag, FS_FMADD_ODD, which rounds to odd, and FS_NEARER and FS_FARTHER:
   whichever of a and b has the smaller or larger magnitude, with a's sign. */

#include "bytes_tile.h"
#include "narrow_sums.h"

typedef int32_t v_dots __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
typedef float v_sums __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
typedef float v_half_sums __attribute__((vector_size(2 * FS_LANES), aligned(4), may_alias));
typedef double v_wide __attribute__((vector_size(4 * FS_LANES), aligned(8), may_alias));

/* A float in all lanes is written x - 0: adding 0 would turn a -0 into 0 and so be an operation. */
FS_INLINE v_sums all(float x) { return x - (v_sums){0}; }

#ifdef FS_BYTES_WORDS
enum { WORDS = 1 };
typedef int16_t code;
#else
enum { WORDS = 0 };
typedef uint8_t code;
#endif

/* d times the scale w, `offset` being w times what a dot product of bytes starts from. */
FS_INLINE v_sums scaled_dot(const int mode, v_dots d, v_sums w, v_sums offset) {
  if (!WORDS) return FS_FMSUB((v_sums)d, w, offset);
  if (mode == FS_BYTES_ALIGNED) return __builtin_convertvector(d, v_sums);
  return __builtin_convertvector(d, v_sums) * w;
}

/* Exact sums of FS_LANES outputs. */
typedef struct {
  v_wide low, high;
} wide;

/* c + t; by way of memory, since from there widening is one operation and from a register two. */
FS_INLINE wide add_wide(wide c, v_sums t) {
  v_half_sums half[2];
  memcpy(half, &t, sizeof t);
  __asm__("" : "+m"(half));
  c.low += FS_WIDEN(half[0]);
  c.high += FS_WIDEN(half[1]);
  return c;
}

FS_INLINE v_sums round_wide(wide c) {
  const v_half_sums low = __builtin_convertvector(c.low, v_half_sums);
  const v_half_sums half[2] = {low, __builtin_convertvector(c.high, v_half_sums)};
  v_sums r;
  memcpy(&r, half, sizeof r);
  return r;
}

/* A type of sums narrower than float: 2^(24 - p), the limits of magnitudes, and what sums are kept times. */
typedef struct {
  int32_t accumulator;
  float places, smallest, largest, lift;
} narrow;

FS_INLINE narrow narrow_of(int32_t accumulator) {
  if (accumulator == FS_SUM_FP16) return (narrow){accumulator, 0x1p13f, 0x1.8p-14f, 65504.0f, 0x1p100f};
  return (narrow){accumulator, 0x1p16f, 0.0f, 0x1.fffffep127f, 1.0f};
}

/* Whether sums are kept lifted and rounded quickly. */
FS_INLINE int is_quick(const int mode) { return mode == FS_BYTES_NARROW || mode == FS_BYTES_DEEP; }

/* c + t * x in narrow sums. */
FS_INLINE v_sums add_narrow(const int mode, const narrow *n, v_sums t, v_sums x, v_sums c) {
#ifdef FS_FMSUB_QUIET
  v_sums s, at;
  if (mode == FS_BYTES_CAREFUL) {
    s = FS_NEARER(FS_FMADD_ODD(t, x, c), all(n->largest));
    at = FS_FARTHER(s, all(n->smallest));
  } else {
    s = FS_FMADD(t, x, c);
    at = mode == FS_BYTES_DEEP ? FS_FARTHER(s, all(n->smallest * n->lift)) : s;
  }
  return FS_FMSUB(at, all(n->places), FS_FMSUB_QUIET(at, all(n->places), s));
#else
  (void)mode;
  const v_float sum = (v_float)c, term = (v_float)(t * x);
  return (v_sums)(n->accumulator == FS_SUM_FP16 ? add_fp16(sum, term) : add_bf16(sum, term));
#endif
}

/* Whether a lane of x is a NaN. */
FS_INLINE int any_nan(v_sums x) {
  const v_dots nan = x != x;
  int32_t any = 0;
  for (int i = 0; i < FS_LANES; i++) any |= nan[i];
  return any != 0;
}
