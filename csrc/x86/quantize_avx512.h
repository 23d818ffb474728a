/* Quantization with AVX-512, ties to even, 16 blocks at a time; see quantize_runs.h. */
#ifndef FS_QUANTIZE_AVX512_H
#define FS_QUANTIZE_AVX512_H
#include <immintrin.h>

#include "../common.h"

/* Lane i = the largest lane of a[i]: a 16x16 transpose that halves the data with each step. As unsigned numbers, floats
   without their sign order like magnitudes, with infinities and NaNs on top. */
FS_INLINE __m512i max_of_each(const __m512i a[16]) {
  __m512i b[8], c[4], d[2];
  for (int i = 0; i < 8; i++)
    b[i] = _mm512_max_epu32(_mm512_inserti64x4(a[i], _mm512_castsi512_si256(a[i + 8]), 1),
                            _mm512_shuffle_i64x2(a[i], a[i + 8], 0xEE));
  for (int i = 0; i < 4; i++)
    c[i] = _mm512_max_epu32(_mm512_shuffle_i64x2(b[i], b[i + 4], 0x88), _mm512_shuffle_i64x2(b[i], b[i + 4], 0xDD));
  for (int i = 0; i < 2; i++)
    d[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(c[i], c[i + 2]), _mm512_unpackhi_epi64(c[i], c[i + 2]));
  const __m512 e = _mm512_castsi512_ps(d[0]), f = _mm512_castsi512_ps(d[1]);
  const __m512i r = _mm512_max_epu32(_mm512_castps_si512(_mm512_shuffle_ps(e, f, 0x88)),
                                     _mm512_castps_si512(_mm512_shuffle_ps(e, f, 0xDD)));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), r);
}

FS_INLINE __m512i magnitude(const float *x) {
  return _mm512_and_si512(_mm512_loadu_si512(x), _mm512_set1_epi32(0x7fffffff));
}

/* The bits of the lowest and highest scale so far of blocks that are not all zero. */
typedef struct {
  __m512i low, high;
} scale_bits;

#define FS_NO_SCALES ((scale_bits){_mm512_set1_epi32(INT32_MAX), _mm512_setzero_si512()})

FS_INLINE void scale_limits(const scale_bits *seen, int32_t *low, int32_t *high) {
  *low = _mm512_reduce_min_epi32(seen->low), *high = _mm512_reduce_max_epi32(seen->high);
}

/* 64 numbers with the scale of four vectors each; one permutation brings the bytes back into order. */
FS_INLINE void store_codes(const float *const x[4], const float inverse[4], const __m512i bounds[2],
                           __m512i flip, uint8_t *codes) {
  __m512i q[4];
  for (int i = 0; i < 4; i++)
    q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x[i]), _mm512_set1_ps(inverse[i])));
  __m512i p = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  p = _mm512_xor_si512(_mm512_max_epi8(_mm512_min_epi8(p, bounds[1]), bounds[0]), flip);
  p = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), p);
  _mm512_storeu_si512(codes, p);
}

/* One vector of a block: where 16 blocks of 16 * v numbers are one after the other from x on, or block i is at at[i]. */
FS_INLINE const float *vector_of(const float *x, const float *const *at, int64_t v, int64_t block, int64_t i) {
  return at ? at[block] + 16 * i : x + 16 * (v * block + i);
}

/* The scales, powers of two, of 16 such blocks with integer mantissas, and their `exponents`, or where
   that is NULL `seen` widened. Returns 0 where a block needs the slow way: not finite, above the highest exponent, or so
   near the ends of the float numbers that 2^24 scales or the inverse of one might leave the normal ones. */
FS_INLINE int scales_of_16(const fs_format *f, const float *x, const float *const *at, int64_t v, int16_t *exponents,
                           scale_bits *seen, __m512i *scale) {
  const int32_t fraction_bits = f->mantissa_bits - 1, top = f->exponent_high + 127, end = 228;
  const __m512i one = _mm512_set1_epi32(0x3f800000), fraction = _mm512_set1_epi32(fraction_bits << 23);
  __m512i a[16];
  for (int i = 0; i < 16; i++) {
    a[i] = magnitude(vector_of(x, at, v, i, 0));
    for (int64_t j = 1; j < v; j++) a[i] = _mm512_max_epu32(a[i], magnitude(vector_of(x, at, v, i, j)));
  }
  const __m512i e = _mm512_and_si512(max_of_each(a), _mm512_set1_epi32(0x7f800000));
  const __mmask16 tiny = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(27 << 23));
  if (_mm512_cmpgt_epu32_mask(e, _mm512_set1_epi32((top < end ? top : end) << 23))) return 0;
  if (tiny) { /* zeros are common and get the scale 1 */
    for (int i = 0; i < 16; i++)
      if (tiny >> i & 1 && _mm512_test_epi32_mask(a[i], a[i])) return 0;
  }
  if (exponents) {
    const int32_t zero = f->exponent_low > -126 ? f->exponent_low : -126;
    const __m512i s = _mm512_max_epi32(_mm512_sub_epi32(_mm512_srli_epi32(e, 23), _mm512_set1_epi32(127)),
                                       _mm512_set1_epi32(f->exponent_low));
    const __m512i all = _mm512_mask_mov_epi32(s, tiny, _mm512_set1_epi32(zero));
    _mm256_storeu_si256((__m256i *)exponents, _mm512_cvtepi32_epi16(all));
  }
  __m512i power = _mm512_max_epi32(e, _mm512_set1_epi32((f->exponent_low + 127) << 23));
  power = _mm512_mask_mov_epi32(power, tiny, _mm512_add_epi32(one, fraction));
  *scale = _mm512_sub_epi32(power, fraction);
  if (!exponents) {
    seen->low = _mm512_mask_min_epi32(seen->low, (__mmask16)~tiny, seen->low, *scale);
    seen->high = _mm512_mask_max_epi32(seen->high, (__mmask16)~tiny, seen->high, *scale);
  }
  return 1;
}

/* 16 such blocks as codes, each xor `flip`, and `exponents`; or where that is NULL as codes and scales, with `seen`
   widened. Ties to even. Writes nothing and returns 0 where scales_of_16 does. */
FS_INLINE int quantize_16_blocks(const fs_format *f, const float *x, const float *const *at, int64_t v, uint8_t flip,
                                 uint8_t *codes, int16_t *exponents, float *scales, scale_bits *seen) {
  __m512i scale;
  if (!scales_of_16(f, x, at, v, exponents, seen, &scale)) return 0;
  if (!exponents) _mm512_storeu_si512(scales, scale);
  float inverse[16] __attribute__((aligned(64)));
  _mm512_store_si512(inverse, _mm512_sub_epi32(_mm512_set1_epi32(0x7f000000), scale));
  const __m512i bounds[2] = {_mm512_set1_epi8((char)-f->max_code), _mm512_set1_epi8((char)f->max_code)};
  const __m512i flips = _mm512_set1_epi8((char)flip);
  for (int64_t i = 0; i < 4 * v; i++) {
    const float *from[4];
    float each[4];
    for (int j = 0; j < 4; j++) {
      const int64_t b = (4 * i + j) / v;
      from[j] = vector_of(x, at, v, b, (4 * i + j) % v);
      each[j] = inverse[b];
    }
    store_codes(from, each, bounds, flips, codes + 64 * i);
  }
  return 1;
}

/* 16 such blocks as bfloat16, mantissas times their block's scale; otherwise as quantize_16_blocks without exponents.
   Adding 1.5 * 2^23 scales rounds to a multiple of the scale. */
FS_INLINE int quantize_16_to_bfloat16(const fs_format *f, const float *x, const float *const *at, int64_t v,
                                      uint16_t *values, float *scales, scale_bits *seen) {
  __m512i scale;
  if (!scales_of_16(f, x, at, v, NULL, seen, &scale)) return 0;
  _mm512_storeu_si512(scales, scale);
  float rounder[16], bound[16];
  _mm512_storeu_ps(rounder, _mm512_mul_ps(_mm512_castsi512_ps(scale), _mm512_set1_ps(12582912.0f)));
  _mm512_storeu_ps(bound, _mm512_mul_ps(_mm512_castsi512_ps(scale), _mm512_set1_ps((float)f->max_code)));
  const __m512i upper_halves = _mm512_add_epi16(_mm512_set1_epi16(1), _mm512_slli_epi16(_mm512_set_epi16(
      31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 1));
  for (int64_t i = 0; i < 16 * v; i += 2) {
    __m512 y[2];
    for (int j = 0; j < 2; j++) {
      const int64_t b = (i + j) / v;
      const __m512 r = _mm512_set1_ps(rounder[b]);
      y[j] = _mm512_sub_ps(_mm512_add_ps(_mm512_loadu_ps(vector_of(x, at, v, b, (i + j) % v)), r), r);
      y[j] = _mm512_range_ps(y[j], _mm512_set1_ps(bound[b]), 2); /* the smaller magnitude, with the sign of y */
    }
    _mm512_storeu_si512(values + 16 * i,
                        _mm512_permutex2var_epi16(_mm512_castps_si512(y[0]), upper_halves, _mm512_castps_si512(y[1])));
  }
  return 1;
}

/* 16 such blocks as int16 mantissas and scales; otherwise as quantize_16_blocks without exponents. */
FS_INLINE int quantize_16_to_words(const fs_format *f, const float *x, const float *const *at, int64_t v,
                                   int16_t *words, float *scales, scale_bits *seen) {
  __m512i scale;
  if (!scales_of_16(f, x, at, v, NULL, seen, &scale)) return 0;
  float inverse[16] __attribute__((aligned(64)));
  _mm512_storeu_si512(scales, scale);
  _mm512_store_si512(inverse, _mm512_sub_epi32(_mm512_set1_epi32(0x7f000000), scale));
  const __m512i high = _mm512_set1_epi16((int16_t)f->max_code), low = _mm512_set1_epi16((int16_t)-f->max_code);
  for (int64_t i = 0; i < 16 * v; i += 2) {
    __m512i q[2];
    for (int j = 0; j < 2; j++) {
      const int64_t b = (i + j) / v;
      const __m512 y = _mm512_loadu_ps(vector_of(x, at, v, b, (i + j) % v));
      q[j] = _mm512_cvtps_epi32(_mm512_mul_ps(y, _mm512_set1_ps(inverse[b])));
    }
    const __m512i p = _mm512_max_epi16(_mm512_min_epi16(_mm512_packs_epi32(q[0], q[1]), high), low);
    _mm512_storeu_si512(words + 16 * i, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), p));
  }
  return 1;
}

/* 16 numbers that are scaled already as int16 mantissas. */
FS_INLINE void store_int16(const fs_format *f, __m512 x, int16_t *codes) {
  __m512i q = _mm512_min_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(f->max_code));
  q = _mm512_max_epi32(q, _mm512_set1_epi32(-f->max_code));
  _mm256_storeu_si256((__m256i *)codes, _mm512_cvtepi32_epi16(q));
}

/* 16 numbers that are scaled already as small floats; encode_floats in quantize_body.h says how. */
FS_INLINE void store_floats(const fs_format *f, __m512 x, uint8_t *codes) {
  const int32_t m = f->mantissa_bits, drop = 23 - m;
  const __m512i u = _mm512_castps_si512(x), v = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
  const __m512 magic = _mm512_set1_ps((float)fs_power(f->element_emin + drop));
  const __m128i by = _mm_cvtsi32_si128(drop);
  const __m512i odd = _mm512_and_si512(_mm512_srl_epi32(v, by), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(v, odd), _mm512_set1_epi32((1 << (drop - 1)) - 1));
  const __m512i normal = _mm512_sub_epi32(_mm512_srl_epi32(up, by), _mm512_set1_epi32((126 + f->element_emin) << m));
  const __m512i subnormal = _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(v), magic)),
                                             _mm512_castps_si512(magic));
  const __mmask16 small = _mm512_cmplt_epu32_mask(v, _mm512_set1_epi32((127 + f->element_emin) << 23));
  __m512i code = _mm512_min_epi32(_mm512_mask_mov_epi32(normal, small, subnormal), _mm512_set1_epi32(f->max_code));
  const __m128i sign = _mm_cvtsi32_si128(m + f->element_exponent_bits);
  code = _mm512_or_si512(code, _mm512_sll_epi32(_mm512_srli_epi32(u, 31), sign));
  _mm_storeu_si128((__m128i *)codes, _mm512_cvtepi32_epi8(code));
}

/* 16 blocks of 16 * v numbers as int16 mantissas or small floats; writes nothing and returns 0 as above. */
FS_INLINE int quantize_16_others(const fs_format *f, const int is_float, const float *x, int64_t v, void *codes,
                                 int16_t *exponents) {
  /* The inverse of 2^127 is no normal number; for int16 mantissas it is larger. */
  const int32_t top = (is_float ? 126 : f->exponent_high) + f->element_emax + 127;
  const int32_t zero = -126 - f->element_emax > f->exponent_low ? -126 - f->element_emax : f->exponent_low;
  __m512i a[16];
  for (int i = 0; i < 16; i++) {
    a[i] = magnitude(x + i * v * 16);
    for (int64_t j = 1; j < v; j++) a[i] = _mm512_max_epu32(a[i], magnitude(x + (i * v + j) * 16));
  }
  const __m512i e = _mm512_srli_epi32(max_of_each(a), 23);
  const __mmask16 tiny = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(27));
  if (_mm512_cmpgt_epu32_mask(e, _mm512_set1_epi32(top < 254 ? top : 254))) return 0;
  if (tiny) {
    for (int i = 0; i < 16; i++)
      if (tiny >> i & 1 && _mm512_test_epi32_mask(a[i], a[i])) return 0;
  }
  __m512i s = _mm512_sub_epi32(e, _mm512_set1_epi32(127 + f->element_emax));
  s = _mm512_max_epi32(s, _mm512_set1_epi32(f->exponent_low));
  s = _mm512_mask_mov_epi32(s, tiny, _mm512_set1_epi32(zero));
  _mm256_storeu_si256((__m256i *)exponents, _mm512_cvtepi32_epi16(s));
  /* 2^(fraction_bits - s), a normal number: s is at least -116 where the block is not zero. */
  const __m512i power = _mm512_sub_epi32(_mm512_set1_epi32(127 + (is_float ? 0 : f->mantissa_bits - 1)), s);
  float inverse[16] __attribute__((aligned(64)));
  _mm512_store_si512(inverse, _mm512_mask_mov_epi32(_mm512_slli_epi32(power, 23), tiny, _mm512_setzero_si512()));
  for (int64_t i = 0; i < 16; i++)
    for (int64_t j = i * v; j < (i + 1) * v; j++) {
      const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * j), _mm512_set1_ps(inverse[i]));
      if (is_float) store_floats(f, scaled, (uint8_t *)codes + 16 * j);
      else store_int16(f, scaled, (int16_t *)codes + 16 * j);
    }
  return 1;
}

FS_INLINE int quantize_16(const fs_format *f, const float *x, int64_t v, char *codes, int16_t *exponents) {
  if (f->element_exponent_bits > 0) return quantize_16_others(f, 1, x, v, codes, exponents);
  if (f->code_bytes == 2) return quantize_16_others(f, 0, x, v, codes, exponents);
  return quantize_16_blocks(f, x, NULL, v, 0, (uint8_t *)codes, exponents, NULL, NULL);
}

#include "quantize_runs.h"
#endif
