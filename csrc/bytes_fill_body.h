/* fs_bytes_fill for one variant, after its quantize_*.h: activations quantized, or already quantized ones, into the
   buffer of a byte convolution. A layout of bfloat16 defines FS_FILL_BFLOAT16, one of words FS_BYTES_WORDS; otherwise
   it is bytes, and the variant defines FS_BYTES_BIAS, what is added to them. */
#include "source_body.h"

#ifdef FS_BYTES_WORDS
typedef int16_t fill_mantissa;
#else
typedef int8_t fill_mantissa;
#endif
#ifdef FS_FILL_BFLOAT16
typedef uint16_t fill_code;
FS_INLINE fill_code fill_code_of(int32_t mantissa, float scale) { return (uint16_t)(fs_bits((float)mantissa * scale) >> 16); }
#elif defined(FS_BYTES_WORDS)
typedef int16_t fill_code;
FS_INLINE fill_code fill_code_of(int32_t mantissa, float scale) {
  (void)scale;
  return (int16_t)mantissa;
}
#else
typedef uint8_t fill_code;
FS_INLINE fill_code fill_code_of(int32_t mantissa, float scale) {
  (void)scale;
  return (uint8_t)(mantissa + FS_BYTES_BIAS);
}
#endif

FS_INLINE void widen(fs_range *range, int32_t power) {
  range->low = power < range->low ? power : range->low;
  range->high = power > range->high ? power : range->high;
}

/* One block of n numbers in a buffer of `size`, for any of them; the slow way. */
static __attribute__((noinline)) void fill_block(const fs_format *f, const float *x, int64_t n, int64_t size,
                                                 fill_code *codes, float *scale, fs_range *range) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const int32_t u = (int32_t)(fs_bits(x[i]) & 0x7fffffffu);
    largest = u > largest ? u : largest;
  }
  for (int64_t i = 0; i < size; i++) codes[i] = fill_code_of(0, 1.0f);
  float of_block = 1.0f;
  if (largest >= 0x7f800000) {
    range->nan = 1, of_block = NAN;
  } else if (largest > 0) {
    int32_t s = ilogbf(fs_float((uint32_t)largest)), any = 0;
    s = s < f->exponent_low ? f->exponent_low : s > f->exponent_high ? f->exponent_high : s;
    const int32_t power = s - (f->mantissa_bits - 1);
    for (int64_t i = 0; i < n; i++) {
      double q = nearbyint((double)x[i] * fs_power(-power));
      q = q > f->max_code ? f->max_code : q < -f->max_code ? -f->max_code : q;
      any |= (int32_t)q;
      codes[i] = fill_code_of((int32_t)q, (float)fs_power(power));
    }
    if (any) of_block = (float)fs_power(power), widen(range, power);
  }
  *scale = of_block;
}

/* What the blocks of one fill share. */
typedef struct {
  const fs_format *f;
  fs_range *range;
  scale_bits seen;
} filling;

FS_INLINE filling begin_filling(const fs_format *f, int32_t largest, fs_range *range) {
  range->largest = largest > range->largest ? largest : range->largest;
  return (filling){f, range, FS_NO_SCALES};
}

FS_INLINE void end_filling(const filling *o) {
  int32_t low, high;
  scale_limits(&o->seen, &low, &high);
  if (high == 0) return;
  widen(o->range, (low >> 23) - 127);
  widen(o->range, (high >> 23) - 127);
}

/* 16 blocks of 16 * v numbers, where there is a quick way for them. */
FS_INLINE int fill_16(filling *o, const float *x, const float *const *at, int64_t v, fill_code *codes, float *scales) {
#ifdef FS_FILL_BFLOAT16
  return quantize_16_to_bfloat16(o->f, x, at, v, codes, scales, &o->seen);
#elif defined(FS_BYTES_WORDS)
  return quantize_16_to_words(o->f, x, at, v, codes, scales, &o->seen);
#else
  return quantize_16_blocks(o->f, x, at, v, FS_BYTES_BIAS, codes, NULL, scales, &o->seen);
#endif
}

/* `blocks` blocks in a row. The last 16 may overlap those before and write the same again. */
FS_INLINE void fill_run(filling *o, const float *x, const int64_t v, int64_t blocks, fill_code *codes, float *scales) {
  for (int64_t b = 0; b < blocks; b = b + 16 < blocks && b + 32 > blocks ? blocks - 16 : b + 16)
    if (!fill_16(o, x + b * v * 16, NULL, v, codes + b * v * 16, scales + b))
      for (int64_t i = b; i < b + 16; i++)
        fill_block(o->f, x + i * v * 16, v * 16, v * 16, codes + i * v * 16, scales + i, o->range);
}

enum { FILL_LARGEST_BLOCK = 128 };

/* Up to 16 blocks from wherever they are, block i of n[i] numbers; those that are not `size` long are `tail` long in
   the buffer. */
static __attribute__((noinline)) void fill_some(filling *o, const float *const *x, const int64_t *n, int64_t count,
                                                int64_t size, int64_t tail, fill_code *codes, float *scales) {
  fill_code some_codes[16 * FILL_LARGEST_BLOCK];
  float some_scales[16] = {0};
  int done = 0;
  if (size % 16 == 0 && size <= FILL_LARGEST_BLOCK) {
    float padded[16][FILL_LARGEST_BLOCK];
    const float *at[16];
    for (int64_t i = 0; i < 16; i++) {
      at[i] = i < count ? x[i] : at[0];
      if (i >= count || n[i] == size) continue;
      memcpy(padded[i], x[i], (size_t)n[i] * sizeof(float));
      memset(padded[i] + n[i], 0, (size_t)(size - n[i]) * sizeof(float));
      at[i] = padded[i];
    }
    done = fill_16(o, NULL, at, size / 16, some_codes, some_scales);
  }
  for (int64_t i = 0; i < count; i++) {
    const int64_t stored = n[i] < size ? tail : size;
    if (done) {
      memcpy(codes, some_codes + i * size, (size_t)stored * sizeof *codes);
      scales[i] = some_scales[i];
    } else {
      fill_block(o->f, x[i], n[i], stored, codes, scales + i, o->range);
    }
    codes += stored;
  }
}

/* `columns` pixels in a row, `step` floats apart. */
static void fill_values(filling *o, int64_t columns, int64_t channels, const fs_bytes *to, const float *x, int64_t step,
                        fill_code *codes, float *scales) {
  /* A lone block need not be longer than its tail. Rows may be longer than the layer has channels; the rest of them are
     zeros. */
  channels = channels < to->row ? channels : to->row;
  const int64_t blocks = to->blocks, all = columns * blocks;
  const int64_t size = blocks == 1 ? (to->tail + 15) / 16 * 16 : to->block;
  if (step == blocks * size && size == to->tail && size % 16 == 0 && all >= 16) {
    if (size == 16) fill_run(o, x, 1, all, codes, scales);
    else if (size == 32) fill_run(o, x, 2, all, codes, scales);
    else if (size == 64) fill_run(o, x, 4, all, codes, scales);
    else if (size == 128) fill_run(o, x, 8, all, codes, scales);
    else fill_run(o, x, size / 16, all, codes, scales);
    return;
  }
  const float *at[16];
  int64_t n[16], count = 0, stored = 0;
  for (int64_t i = 0; i < columns; i++)
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t left = channels - b * size; /* b is 0 where the size is not the block */
      at[count] = x + i * step + b * size;
      n[count++] = left < size ? left : size;
      stored += b + 1 < blocks ? size : to->tail;
      if (count < 16 && i * blocks + b + 1 < all) continue;
      fill_some(o, at, n, count, size, to->tail, codes, scales);
      codes += stored, scales += count, count = stored = 0;
    }
}

/* A pixel of blocks that are quantized already. */
static void fill_codes(const fs_source *from, const fs_bytes *to, const fill_mantissa *m, const int16_t *exponents,
                       fill_code *codes, float *scales, fs_range *range) {
  for (int64_t b = 0; b < to->blocks; b++, m += to->block) {
    const int64_t size = b + 1 < to->blocks ? to->block : to->tail;
    const int32_t power = (int32_t)(exponents[b] - from->fraction_bits);
    const float scale = (float)fs_power(power);
    int32_t any = 0;
    for (int64_t k = 0; k < size; k++) any |= m[k], codes[k] = fill_code_of(m[k], scale);
#ifdef FS_BYTES_WORDS
    for (int64_t k = 0; k < size; k++) {
      const int32_t q = m[k] < 0 ? -m[k] : m[k];
      range->largest = q > range->largest ? q : range->largest;
    }
#endif
    codes += size;
    scales[b] = 1.0f;
    if (exponents[b] == FS_NAN_EXPONENT) range->nan = 1;
    else if (any) scales[b] = scale, widen(range, power);
  }
}

static void clear(const fs_bytes *to, int64_t pixel, int64_t pixels) {
  fill_code *codes = (fill_code *)to->codes + pixel * to->row;
  for (int64_t i = 0; i < pixels * to->row; i++) codes[i] = fill_code_of(0, 1.0f);
  for (int64_t i = pixel * to->blocks; i < (pixel + pixels) * to->blocks; i++) to->scales[i] = 1.0f;
}

/* Where row r of all images' rows begins in the buffer. */
FS_INLINE int64_t row_of(const fs_source *place, const fs_bytes *to, int64_t r) {
  return (r / place->rows * to->height + place->top + r % place->rows) * to->width + place->left;
}

/* The pixels first <= p < last of all images of rows x columns pixels, whose numbers are at x, and the zeros before
   each row; behind the last one the rest. */
static __attribute__((noinline)) void fill_pixels(filling *o, const fs_source *place, const fs_bytes *to, const float *x,
                                                  int64_t first, int64_t last) {
  const int64_t rows = to->images * place->rows, channels = place->channels;
  for (int64_t p = first, n; p < last; p += n, x += n * channels) {
    const int64_t r = p / place->columns, column = p % place->columns, begin = row_of(place, to, r);
    n = place->columns - column < last - p ? place->columns - column : last - p;
    if (column == 0) {
      const int64_t end = r ? row_of(place, to, r - 1) + place->columns : 0;
      clear(to, end, begin - end);
    }
    fill_values(o, n, channels, to, x, channels, (fill_code *)to->codes + (begin + column) * to->row,
                to->scales + (begin + column) * to->blocks);
    if (p + n == rows * place->columns)
      clear(to, begin + place->columns, to->images * to->height * to->width - begin - place->columns);
  }
}

static __attribute__((noinline)) int64_t fill(const fs_format *f, const fs_source *from, const fs_bytes *to,
                                              int64_t first_row, int64_t last_row, fs_range *range) {
  int64_t saturated = 0;
  filling o = begin_filling(f, from->values ? f->max_code : sizeof(fill_mantissa) == 1 ? 128 : 0, range);
  begin_source(from);
  for (int64_t row = first_row; row < last_row; row++) {
    const int64_t r = row % to->height - from->top, pixel = row * to->width;
    if (r < 0 || r >= from->rows) {
      clear(to, pixel, to->width);
      continue;
    }
    clear(to, pixel, from->left);
    clear(to, pixel + from->left + from->columns, to->width - from->left - from->columns);
    const int64_t image = row / to->height, first = (image * from->height + r * from->row_stride) * from->width;
    fill_code *codes = (fill_code *)to->codes + (pixel + from->left) * to->row;
    float *scales = to->scales + (pixel + from->left) * to->blocks;
    if (from->values) {
      int64_t step;
      const float *x = source_row(from, image, r, &step, &saturated);
      fill_values(&o, from->columns, from->channels, to, x, step, codes, scales);
      continue;
    }
    for (int64_t i = 0; i < from->columns; i++, codes += to->row, scales += to->blocks) {
      const int64_t block = (first + i * from->column_stride) * to->blocks;
      fill_codes(from, to, (const fill_mantissa *)from->codes + block * to->block, from->exponents + block, codes, scales, range);
    }
  }
  end_filling(&o);
  return saturated;
}

int64_t FS_FN(fs_bytes_fill)(const fs_format *f, const fs_source *from, const fs_bytes *to, int64_t first_row,
                             int64_t last_row, fs_range *range) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = fill(f, from, to, first_row, last_row, range);
  fs_fp_leave(state);
  return saturated;
}
