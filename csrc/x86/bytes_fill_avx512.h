/* fs_bytes_fill with AVX-512: activations quantized, or already quantized ones, into the buffer of a byte convolution. */
#include "quantize_avx512.h"

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

/* What the blocks of one fill share. */
typedef struct {
  const fs_format *f;
  fs_range *range;
  scale_bits seen;
} filling;

/* `blocks` blocks in a row. The last 16 may overlap those before and write the same again. */
FS_INLINE void fill_run(filling *o, const float *x, const int64_t v, int64_t blocks, uint8_t *codes, float *scales) {
  for (int64_t b = 0; b < blocks; b = b + 16 < blocks && b + 32 > blocks ? blocks - 16 : b + 16)
    if (!quantize_16_blocks(o->f, x + b * v * 16, NULL, v, codes + b * v * 16, NULL, scales + b, &o->seen))
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
    if (quantize_16_blocks(o->f, NULL, at, block / 16, some_codes, NULL, some_scales, &o->seen)) {
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
    else if (block == 128) fill_run(o, x, 8, all, codes, scales);
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
  filling o = {f, range, {_mm512_set1_epi32(INT32_MAX), _mm512_setzero_si512()}};
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
  const int32_t low = _mm512_reduce_min_epi32(o.seen.low), high = _mm512_reduce_max_epi32(o.seen.high);
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
