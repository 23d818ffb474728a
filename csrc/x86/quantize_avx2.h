/* Quantization with AVX2, ties to even, 16 blocks at a time; see quantize_runs.h. */
#ifndef FS_QUANTIZE_AVX2_H
#define FS_QUANTIZE_AVX2_H
#include <immintrin.h>

#include "../common.h"

/* The bits of the lowest and highest scale so far of blocks that are not all zero. */
typedef struct {
  __m256i low, high;
} scale_bits;

#define FS_NO_SCALES ((scale_bits){_mm256_set1_epi32(INT32_MAX), _mm256_setzero_si256()})

FS_INLINE void scale_limits(const scale_bits *seen, int32_t *low, int32_t *high) {
  int32_t lows[8], highs[8];
  _mm256_storeu_si256((__m256i *)lows, seen->low);
  _mm256_storeu_si256((__m256i *)highs, seen->high);
  *low = lows[0], *high = highs[0];
  for (int i = 1; i < 8; i++) {
    *low = lows[i] < *low ? lows[i] : *low;
    *high = highs[i] > *high ? highs[i] : *high;
  }
}

/* Lane i = the largest lane of a[i]: an 8x8 transpose that halves the data with each step. */
FS_INLINE __m256i max_of_each(const __m256i a[8]) {
  __m256i b[4], c[2];
  for (int i = 0; i < 4; i++)
    b[i] = _mm256_max_epi32(_mm256_permute2x128_si256(a[i], a[i + 4], 0x20),
                            _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
  for (int i = 0; i < 2; i++)
    c[i] = _mm256_max_epi32(_mm256_unpacklo_epi64(b[i], b[i + 2]), _mm256_unpackhi_epi64(b[i], b[i + 2]));
  const __m256 d = _mm256_castsi256_ps(c[0]), e = _mm256_castsi256_ps(c[1]);
  const __m256i r = _mm256_max_epi32(_mm256_castps_si256(_mm256_shuffle_ps(d, e, 0x88)),
                                     _mm256_castps_si256(_mm256_shuffle_ps(d, e, 0xDD)));
  return _mm256_shuffle_epi32(r, 0xD8);
}

FS_INLINE __m256i magnitude(const float *x) {
  return _mm256_and_si256(_mm256_loadu_si256((const __m256i *)x), _mm256_set1_epi32(0x7fffffff));
}

/* Vector i of block b: where blocks of 8 * v numbers are one after the other from x on, or block b is at at[b]. */
FS_INLINE const float *vector_of(const float *x, const float *const *at, int64_t v, int64_t b, int64_t i) {
  return at ? at[b] + 8 * i : x + 8 * (v * b + i);
}

/* The scales, powers of two, of eight such blocks from `first` on, and their exponents; `tiny`: those that are all zero.
   Returns 0 where a block needs the slow way: not finite, above the highest exponent, or so near the ends of the float
   numbers that the inverse of a scale might leave the normal ones. */
FS_INLINE int scales_of_8(const fs_format *f, const float *x, const float *const *at, int64_t v, int64_t first,
                          __m256i *scale, __m256i *exponents, __m256i *tiny) {
  const int32_t top = f->exponent_high + 127, end = 228, zero = f->exponent_low > -126 ? f->exponent_low : -126;
  const __m256i one = _mm256_set1_epi32(0x3f800000), fraction = _mm256_set1_epi32((f->mantissa_bits - 1) << 23);
  __m256i a[8];
  for (int i = 0; i < 8; i++) {
    a[i] = magnitude(vector_of(x, at, v, first + i, 0));
    for (int64_t j = 1; j < v; j++) a[i] = _mm256_max_epi32(a[i], magnitude(vector_of(x, at, v, first + i, j)));
  }
  const __m256i largest = max_of_each(a), e = _mm256_and_si256(largest, _mm256_set1_epi32(0x7f800000));
  const __m256i beyond = _mm256_cmpgt_epi32(e, _mm256_set1_epi32((top < end ? top : end) << 23));
  *tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(27 << 23), e); /* zeros are common and get the scale 1 */
  const __m256i odd = _mm256_andnot_si256(_mm256_cmpeq_epi32(largest, _mm256_setzero_si256()), *tiny);
  if (!_mm256_testz_si256(_mm256_or_si256(beyond, odd), _mm256_set1_epi32(-1))) return 0;
  const __m256i s = _mm256_max_epi32(_mm256_sub_epi32(_mm256_srli_epi32(e, 23), _mm256_set1_epi32(127)),
                                     _mm256_set1_epi32(f->exponent_low));
  *exponents = _mm256_blendv_epi8(s, _mm256_set1_epi32(zero), *tiny);
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(s, _mm256_set1_epi32(127)), 23);
  *scale = _mm256_blendv_epi8(_mm256_sub_epi32(power, fraction), one, *tiny);
  return 1;
}

/* The scales of 16 blocks of 16 * v numbers, or 0 as scales_of_8; `seen` widened, unless it is NULL, and the inverses. */
FS_INLINE int scales_of_16(const fs_format *f, const float *x, const float *const *at, int64_t v, __m256i scale[2],
                           __m256i exponents[2], scale_bits *seen, float *inverse) {
  __m256i tiny[2];
  for (int i = 0; i < 2; i++)
    if (!scales_of_8(f, x, at, 2 * v, 8 * i, scale + i, exponents + i, tiny + i)) return 0;
  for (int i = 0; i < 2; i++) {
    _mm256_storeu_si256((__m256i *)(inverse + 8 * i), _mm256_sub_epi32(_mm256_set1_epi32(0x7f000000), scale[i]));
    if (!seen) continue;
    seen->low = _mm256_min_epi32(seen->low, _mm256_or_si256(scale[i], _mm256_srli_epi32(tiny[i], 1)));
    seen->high = _mm256_max_epi32(seen->high, _mm256_andnot_si256(tiny[i], scale[i]));
  }
  return 1;
}

/* Eight numbers, of block j / (2 * v), as integers. */
FS_INLINE __m256i integers(const float *x, const float *const *at, int64_t v, int64_t j, const float *inverse) {
  const __m256 from = _mm256_loadu_ps(vector_of(x, at, 2 * v, j / (2 * v), j % (2 * v)));
  return _mm256_cvtps_epi32(_mm256_mul_ps(from, _mm256_set1_ps(inverse[j / (2 * v)])));
}

/* 16 blocks of 16 * v numbers as codes, each xor `flip`, and `exponents`; or where that is NULL as codes and scales,
   with `seen` widened. Ties to even. Writes nothing and returns 0 where scales_of_8 does. */
FS_INLINE int quantize_16_blocks(const fs_format *f, const float *x, const float *const *at, int64_t v, uint8_t flip,
                                 uint8_t *codes, int16_t *exponents, float *scales, scale_bits *seen) {
  __m256i scale[2], e[2];
  float inverse[16];
  if (!scales_of_16(f, x, at, v, scale, e, seen, inverse)) return 0;
  if (exponents) {
    const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(e[0], e[1]), 0xD8);
    _mm256_storeu_si256((__m256i *)exponents, both);
  } else {
    memcpy(scales, scale, sizeof scale);
  }
  const __m256i low = _mm256_set1_epi8((char)-f->max_code), high = _mm256_set1_epi8((char)f->max_code);
  for (int64_t i = 0; i < 8 * v; i++) { /* 32 numbers; one permutation brings the bytes back into order */
    __m256i q[4];
    for (int j = 0; j < 4; j++) q[j] = integers(x, at, v, 4 * i + j, inverse);
    __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    p = _mm256_max_epi8(_mm256_min_epi8(p, high), low);
    p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(codes + 32 * i), _mm256_xor_si256(p, _mm256_set1_epi8((char)flip)));
  }
  return 1;
}

/* 16 such blocks as int16 mantissas; otherwise as quantize_16_blocks without exponents. */
FS_INLINE int quantize_16_to_words(const fs_format *f, const float *x, const float *const *at, int64_t v,
                                   int16_t *words, float *scales, scale_bits *seen) {
  __m256i scale[2], e[2];
  float inverse[16];
  if (!scales_of_16(f, x, at, v, scale, e, seen, inverse)) return 0;
  memcpy(scales, scale, sizeof scale);
  const __m256i low = _mm256_set1_epi16((int16_t)-f->max_code), high = _mm256_set1_epi16((int16_t)f->max_code);
  for (int64_t i = 0; i < 16 * v; i++) {
    const __m256i p = _mm256_packs_epi32(integers(x, at, v, 2 * i, inverse), integers(x, at, v, 2 * i + 1, inverse));
    _mm256_storeu_si256((__m256i *)(words + 16 * i),
                        _mm256_permute4x64_epi64(_mm256_max_epi16(_mm256_min_epi16(p, high), low), 0xD8));
  }
  return 1;
}

FS_INLINE int quantize_16(const fs_format *f, const float *x, int64_t v, char *codes, int16_t *exponents) {
  if (f->code_bytes == 2 || f->element_exponent_bits > 0) return 0;
  return quantize_16_blocks(f, x, NULL, v, 0, (uint8_t *)codes, exponents, NULL, NULL);
}

#include "quantize_runs.h"
#endif
