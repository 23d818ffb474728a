/* fs_bytes_fill with AVX-512: activations quantized, or already quantized ones, into the buffer of a byte convolution. */
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

FS_INLINE void widen(fs_range *range, int32_t power) {
  range->low = power < range->low ? power : range->low;
  range->high = power > range->high ? power : range->high;
}

/* One block of n numbers in a buffer of `block`, for any of them; the slow way. */
static __attribute__((noinline)) void fill_block(const fs_format *f, const float *x, int64_t n, uint8_t *codes,
                                                 float *scale, fs_range *range) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const int32_t u = (int32_t)(fs_bits(x[i]) & 0x7fffffffu);
    largest = u > largest ? u : largest;
  }
  memset(codes, 0x80, (size_t)f->block);
  *scale = 1.0f;
  if (largest >= 0x7f800000) {
    *scale = NAN;
    range->nan = 1;
    return;
  }
  if (largest == 0) return;
  int32_t s = ilogbf(fs_float((uint32_t)largest)), any = 0;
  s = s < f->exponent_low ? f->exponent_low : s > f->exponent_high ? f->exponent_high : s;
  const int32_t power = s - (f->mantissa_bits - 1);
  for (int64_t i = 0; i < n; i++) {
    double q = nearbyint((double)x[i] * fs_power(-power));
    q = q > f->max_code ? f->max_code : q < -f->max_code ? -f->max_code : q;
    any |= (int32_t)q;
    codes[i] = (uint8_t)((int32_t)q ^ 0x80);
  }
  if (!any) return;
  *scale = (float)fs_power(power);
  widen(range, power);
}

/* What blocks of one fill share; low and high: of the bits of scales so far. */
typedef struct {
  const fs_format *f;
  fs_range *range;
  __m512i low, high;
} filling;

/* 64 numbers with the scale of four vectors each; one permutation brings the bytes back into order. */
FS_INLINE void store_codes(const float *const x[4], const float inverse[4], __m512i low, __m512i high, uint8_t *codes) {
  __m512i q[4];
  for (int i = 0; i < 4; i++)
    q[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x[i]), _mm512_set1_ps(inverse[i])));
  __m512i p = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  p = _mm512_xor_si512(_mm512_max_epi8(_mm512_min_epi8(p, high), low), _mm512_set1_epi8((char)0x80));
  p = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), p);
  _mm512_storeu_si512(codes, p);
}

/* 16 blocks of 16 * v numbers: block i at x + 16 * v * i, or at[i] if `at` is not NULL. Writes nothing and returns 0
   where a block needs the slow way: not finite, above the highest exponent, or so near the ends of the float numbers
   that its scale or the inverse might leave the normal ones. */
FS_INLINE int fill_16_blocks(filling *o, const float *x, const float *const *at, int64_t v, uint8_t *codes,
                             float *scales) {
  const int32_t fraction_bits = o->f->mantissa_bits - 1, top = o->f->exponent_high + 127;
  const __m512i one = _mm512_set1_epi32(0x3f800000), fraction = _mm512_set1_epi32(fraction_bits << 23);
#define BLOCK(i) (at ? at[i] : x + (int64_t)(i) * v * 16)
  __m512i a[16];
  for (int i = 0; i < 16; i++) {
    a[i] = magnitude(BLOCK(i));
    for (int64_t j = 1; j < v; j++) a[i] = _mm512_max_epu32(a[i], magnitude(BLOCK(i) + 16 * j));
  }
  const __m512i e = _mm512_and_si512(max_of_each(a), _mm512_set1_epi32(0x7f800000));
  const __mmask16 tiny = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(27 << 23));
  if (_mm512_cmpgt_epu32_mask(e, _mm512_set1_epi32((top < 252 ? top : 252) << 23))) return 0;
  if (tiny) { /* zeros are common and get the scale 1 */
    for (int i = 0; i < 16; i++)
      if (tiny >> i & 1 && _mm512_test_epi32_mask(a[i], a[i])) return 0;
  }
  __m512i power = _mm512_max_epi32(e, _mm512_set1_epi32((o->f->exponent_low + 127) << 23));
  power = _mm512_mask_mov_epi32(power, tiny, _mm512_add_epi32(one, fraction));
  const __m512i scale = _mm512_sub_epi32(power, fraction);
  o->low = _mm512_mask_min_epi32(o->low, (__mmask16)~tiny, o->low, scale);
  o->high = _mm512_mask_max_epi32(o->high, (__mmask16)~tiny, o->high, scale);
  _mm512_storeu_si512(scales, scale);
  float inverse[16] __attribute__((aligned(64)));
  _mm512_store_si512(inverse, _mm512_sub_epi32(_mm512_set1_epi32(0x7f000000), scale));
  const __m512i largest = _mm512_set1_epi8((char)o->f->max_code), least = _mm512_set1_epi8((char)-o->f->max_code);
  for (int64_t i = 0; i < 4 * v; i++) {
    const float *from[4];
    float each[4];
    for (int j = 0; j < 4; j++) {
      const int64_t b = (4 * i + j) / v;
      from[j] = BLOCK(b) + (4 * i + j) % v * 16;
      each[j] = inverse[b];
    }
    store_codes(from, each, least, largest, codes + 64 * i);
  }
#undef BLOCK
  return 1;
}

/* `blocks` blocks in a row. The last 16 may overlap those before and write the same again. */
FS_INLINE void fill_run(filling *o, const float *x, const int64_t v, int64_t blocks, uint8_t *codes, float *scales) {
  for (int64_t b = 0; b < blocks; b = b + 16 < blocks && b + 32 > blocks ? blocks - 16 : b + 16)
    if (!fill_16_blocks(o, x + b * v * 16, NULL, v, codes + b * v * 16, scales + b))
      for (int64_t i = b; i < b + 16; i++)
        fill_block(o->f, x + i * v * 16, v * 16, codes + i * v * 16, scales + i, o->range);
}

enum { FILL_LARGEST_BLOCK = 128 };

/* Up to 16 blocks from wherever they are, each of n[i] numbers. */
static __attribute__((noinline)) void fill_some(filling *o, const float *const *x, const int64_t *n, int64_t count,
                                                uint8_t *codes, float *scales) {
  const int64_t block = o->f->block;
  if (block % 16 == 0 && block <= FILL_LARGEST_BLOCK) {
    float padded[16][FILL_LARGEST_BLOCK];
    const float *at[16];
    uint8_t some_codes[16 * FILL_LARGEST_BLOCK];
    float some_scales[16];
    for (int64_t i = 0; i < 16; i++) {
      const int64_t from = i < count ? i : 0;
      at[i] = i < count ? x[i] : at[0];
      if (n[from] == block || i >= count) continue;
      memcpy(padded[i], x[i], (size_t)n[i] * sizeof(float));
      memset(padded[i] + n[i], 0, (size_t)(block - n[i]) * sizeof(float));
      at[i] = padded[i];
    }
    if (fill_16_blocks(o, NULL, at, block / 16, some_codes, some_scales)) {
      memcpy(codes, some_codes, (size_t)(count * block));
      memcpy(scales, some_scales, (size_t)count * sizeof(float));
      return;
    }
  }
  for (int64_t i = 0; i < count; i++) fill_block(o->f, x[i], n[i], codes + i * block, scales + i, o->range);
}

/* A row of pixels, `step` floats apart. */
static void fill_values(filling *o, const fs_source *from, const fs_bytes *to, const float *x, int64_t step,
                        uint8_t *codes, float *scales) {
  const int64_t block = to->block, blocks = to->blocks, all = from->columns * blocks;
  if (step == blocks * block && block % 16 == 0 && all >= 16) {
    if (block == 16) fill_run(o, x, 1, all, codes, scales);
    else if (block == 32) fill_run(o, x, 2, all, codes, scales);
    else fill_run(o, x, block / 16, all, codes, scales);
    return;
  }
  const float *at[16];
  int64_t n[16], count = 0;
  for (int64_t i = 0; i < from->columns; i++)
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t left = from->channels - b * block;
      at[count] = x + i * step + b * block;
      n[count++] = left < block ? left : block;
      if (count < 16 && i * blocks + b + 1 < all) continue;
      fill_some(o, at, n, count, codes, scales);
      codes += count * block, scales += count, count = 0;
    }
}

/* A pixel of blocks that are quantized already. */
static void fill_codes(const fs_source *from, const fs_bytes *to, const int8_t *m, const int16_t *exponents,
                       uint8_t *codes, float *scales, fs_range *range) {
  for (int64_t b = 0; b < to->blocks; b++, m += to->block, codes += to->block) {
    int32_t any = 0;
    if (to->block == 16) {
      const __m128i v = _mm_loadu_si128((const __m128i *)m);
      any = !_mm_testz_si128(v, v);
      _mm_storeu_si128((__m128i *)codes, _mm_xor_si128(v, _mm_set1_epi8((char)0x80)));
    } else {
      for (int64_t k = 0; k < to->block; k++) any |= m[k], codes[k] = (uint8_t)m[k] ^ 0x80;
    }
    const int32_t power = (int32_t)(exponents[b] - from->fraction_bits);
    scales[b] = 1.0f;
    if (exponents[b] == FS_NAN_EXPONENT) range->nan = 1;
    else if (any) scales[b] = (float)fs_power(power), widen(range, power);
  }
}

static void clear(const fs_bytes *to, int64_t pixel, int64_t pixels) {
  memset(to->codes + pixel * to->blocks * to->block, 0x80, (size_t)(pixels * to->blocks * to->block));
  for (int64_t i = pixel * to->blocks; i < (pixel + pixels) * to->blocks; i++) to->scales[i] = 1.0f;
}

static __attribute__((noinline)) void fill(const fs_format *f, const fs_source *from, const fs_bytes *to,
                                           int64_t first_row, int64_t last_row, fs_range *range) {
  filling o = {f, range, _mm512_set1_epi32(INT32_MAX), _mm512_setzero_si512()};
  if (range->largest < (from->values ? f->max_code : 128)) range->largest = from->values ? f->max_code : 128;
  for (int64_t row = first_row; row < last_row; row++) {
    const int64_t r = row % to->height - from->top, pixel = row * to->width;
    if (r < 0 || r >= from->rows) {
      clear(to, pixel, to->width);
      continue;
    }
    clear(to, pixel, from->left);
    clear(to, pixel + from->left + from->columns, to->width - from->left - from->columns);
    const int64_t first = (row / to->height * from->height + r * from->row_stride) * from->width;
    uint8_t *codes = to->codes + (pixel + from->left) * to->blocks * to->block;
    float *scales = to->scales + (pixel + from->left) * to->blocks;
    if (from->values) {
      fill_values(&o, from, to, from->values + first * from->channels, from->column_stride * from->channels, codes,
                  scales);
      continue;
    }
    for (int64_t i = 0; i < from->columns; i++, codes += to->blocks * to->block, scales += to->blocks) {
      const int64_t block = (first + i * from->column_stride) * to->blocks;
      fill_codes(from, to, from->codes + block * to->block, from->exponents + block, codes, scales, range);
    }
  }
  const int32_t low = _mm512_reduce_min_epi32(o.low), high = _mm512_reduce_max_epi32(o.high);
  if (high == 0) return;
  widen(range, (low >> 23) - 127);
  widen(range, (high >> 23) - 127);
}

void FS_FN(fs_bytes_fill)(const fs_format *f, const fs_source *from, const fs_bytes *to, int64_t first_row,
                          int64_t last_row, fs_range *range) {
  fs_fp_state state = fs_fp_enter();
  fill(f, from, to, first_row, last_row, range);
  fs_fp_leave(state);
}
