/* fs_bytes_fill for one variant, after quantize_body.h and bytes_conv_body.h. A variant defines FS_BYTES_BIAS, what
   activations carry. */
#include "source_body.h"

/* Mantissas in `codes`, worth 2^(exponent - fraction_bits), as the kernels take them. */
FS_INLINE void finish_block(int64_t block, int32_t exponent, int64_t fraction_bits, code *codes, float *scale,
                            fs_range *range) {
  int32_t any = 0;
  for (int64_t k = 0; k < block; k++) {
    const int32_t q = codes[k], magnitude = q < 0 ? -q : q;
    if (WORDS && magnitude > range->largest) range->largest = magnitude;
    any |= q, codes[k] = (code)(q + FS_BYTES_BIAS);
  }
  const int32_t power = exponent - (int32_t)fraction_bits;
  *scale = 1.0f;
  if (exponent == FS_NAN_EXPONENT) {
    range->nan = 1;
  } else if (any) {
    *scale = (float)fs_power(power);
    range->low = power < range->low ? power : range->low;
    range->high = power > range->high ? power : range->high;
  }
}

static void clear(const fs_bytes *to, int64_t pixel, int64_t pixels) {
  code *codes = (code *)to->codes + pixel * to->row;
  for (int64_t i = 0; i < pixels * to->row; i++) codes[i] = FS_BYTES_BIAS;
  for (int64_t i = pixel * to->blocks; i < (pixel + pixels) * to->blocks; i++) to->scales[i] = 1.0f;
}

static __attribute__((noinline)) int64_t fill(const fs_format *f, const fs_source *from, const fs_bytes *to,
                                              int64_t first_row, int64_t last_row, fs_range *range) {
  /* Rows may be longer than the layer has channels; the rest of them are zeros. */
  const int64_t block = to->block, channels = from->channels < to->row ? from->channels : to->row;
  int64_t saturated = 0;
  const int32_t largest = from->values ? f->max_code : WORDS ? 0 : 128;
  range->largest = largest > range->largest ? largest : range->largest;
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
    int64_t step = 0;
    const float *values = from->values ? source_row(from, image, r, &step, &saturated) : NULL;
    int64_t at = (pixel + from->left) * to->blocks;
    for (int64_t i = 0; i < from->columns; i++)
      for (int64_t b = 0; b < to->blocks; b++, at++) {
        const int64_t source = first + i * from->column_stride, left = channels - b * block;
        const int64_t size = b + 1 < to->blocks ? block : to->tail;
        code *codes = (code *)to->codes + (at / to->blocks) * to->row + b * block;
        if (!from->values) {
          memcpy(codes, (const code *)from->codes + (source * to->blocks + b) * block, (size_t)size * sizeof *codes);
          finish_block(size, from->exponents[source * to->blocks + b], from->fraction_bits, codes, to->scales + at, range);
          continue;
        }
        const float *x = values + i * step + b * block;
        const int64_t n = left < block ? left : block;
        const int32_t e = n == 16 ? encode_block(f, x, 16, FS_EVEN, 0, 0, codes) : encode_block(f, x, n, FS_EVEN, 0, 0, codes);
        memset(codes + n, 0, (size_t)(size - n) * sizeof *codes);
        finish_block(size, e, f->mantissa_bits - 1, codes, to->scales + at, range);
      }
  }
  return saturated;
}

int64_t FS_FN(fs_bytes_fill)(const fs_format *f, const fs_source *from, const fs_bytes *to, int64_t first_row,
                             int64_t last_row, fs_range *range) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = fill(f, from, to, first_row, last_row, range);
  fs_fp_leave(state);
  return saturated;
}
