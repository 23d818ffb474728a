/* What the byte convolutions of all variants share: the order of the terms, packed weights, and when they are exact. */
#include "common.h"

/* Codes that one step of a dot product takes: four bytes, though blocks of 16 are quicker as wholes; or as many
   bfloat16 as go into a row of a tile and divide the block. */
int64_t fs_bytes_step(int64_t block, int32_t layout) {
  if (layout != FS_BFLOAT16) return block == 16 ? 16 : 4;
  int64_t step = 32;
  while (block % step) step -= 2;
  return step;
}

/* Term i of a sum: its tap and its block within the group. */
static void split_term(const fs_conv *c, int32_t chwk, int64_t i, int64_t *tap, int64_t *block) {
  const int64_t taps = c->window.kernel_height * c->window.kernel_width;
  *tap = chwk ? i % taps : i / c->group_blocks;
  *block = chwk ? i / taps : i % c->group_blocks;
}

int64_t fs_bytes_terms(const fs_conv *c, int64_t tail, int32_t chwk, fs_term *terms) {
  const fs_window *v = &c->window;
  const int64_t n = v->kernel_height * v->kernel_width * c->group_blocks, row = (c->blocks - 1) * c->block + tail;
  int64_t codes = 0, tap, block;
  for (int64_t i = 0; i < n; i++) {
    split_term(c, chwk, i, &tap, &block);
    const int64_t y = tap / v->kernel_width * v->dilation_height, x = tap % v->kernel_width * v->dilation_width;
    const int64_t pixel = y * v->width + x, size = block + 1 < c->blocks ? c->block : tail;
    terms[i] = (fs_term){(int32_t)(pixel * row + block * c->block), (int32_t)(pixel * c->blocks + block), (int32_t)size};
    codes += size;
  }
  return codes;
}

int64_t fs_bytes_panel(const fs_conv *c, int64_t panel, int32_t layout, int64_t codes) {
  const int64_t terms = c->window.kernel_height * c->window.kernel_width * c->group_blocks;
  return panel * (layout == FS_BFLOAT16 ? 2 * codes : 8 * terms + codes);
}

/* Per panel and term, as bytes: what a dot product starts from (panel x int32), the scales (panel x float), and the
   mantissas, four by four, (size / 4, panel, 4). Biased activations make a dot product start from minus the bias times
   the sum of the mantissas; it also starts from the bits of 1.5 * 2^23, so that while |d| < 2^22 it ends as the float
   1.5 * 2^23 + d. As bfloat16: the mantissas times their scales, two by two, (size / 2, panel, 2). */
void fs_bytes_pack(const fs_conv *c, int64_t panel, int32_t layout, int64_t tail, int32_t chwk, const int8_t *mantissas,
                   const int16_t *exponents, int64_t fraction_bits, uint8_t *packed, fs_range *range) {
  const int64_t filters = c->outputs / c->groups, panels = (filters + panel - 1) / panel, block = c->block;
  const int64_t taps = c->window.kernel_height * c->window.kernel_width, n = taps * c->group_blocks;
  const int floats = layout == FS_BFLOAT16;
  const uint32_t bias = layout == FS_BIASED_BYTES ? 128 : 0;
  for (int64_t p = 0; p < c->groups * panels; p++) {
    const int64_t group = p / panels, skip = p % panels * panel;
    const int64_t first_block = group * (c->channels / c->groups) / block;
    for (int64_t i = 0; i < n; i++) {
      int64_t tap, b;
      split_term(c, chwk, i, &tap, &b);
      const int64_t size = b + 1 < c->blocks ? block : tail, bytes = panel * (floats ? 2 * size : 8 + size);
      memset(packed, 0, (size_t)bytes);
      for (int64_t j = 0; j < panel; j++) {
        int32_t sum = 0, largest = 0;
        float scale = 1.0f;
        if (skip + j < filters) {
          const int64_t source = ((group * filters + skip + j) * taps + tap) * c->blocks + first_block + b;
          const int8_t *m = mantissas + source * block;
          const int32_t power = (int32_t)(exponents[source] - fraction_bits);
          for (int64_t k = 0; k < size; k++) {
            const int32_t magnitude = m[k] < 0 ? -m[k] : m[k];
            sum += m[k];
            largest = magnitude > largest ? magnitude : largest;
          }
          if (exponents[source] == FS_NAN_EXPONENT) {
            range->nan = 1;
          } else if (largest > 0) {
            scale = (float)fs_power(power);
            range->low = power < range->low ? power : range->low;
            range->high = power > range->high ? power : range->high;
            range->largest = largest > range->largest ? largest : range->largest;
          }
          for (int64_t k = 0; k < size; k++) {
            if (floats) {
              const uint16_t value = (uint16_t)(fs_bits((float)m[k] * scale) >> 16);
              memcpy(packed + 2 * (k / 2 * 2 * panel + 2 * j + k % 2), &value, sizeof value);
            } else {
              packed[panel * (8 + k / 4 * 4) + 4 * j + k % 4] = (uint8_t)m[k];
            }
          }
        }
        if (floats) continue;
        const uint32_t start = 0x4B400000u - bias * (uint32_t)sum;
        memcpy(packed + 4 * j, &start, sizeof start);
        memcpy(packed + 4 * (panel + j), &scale, sizeof scale);
      }
      packed += bytes;
    }
  }
}

/* Every product on the way must be exact: the float of d (|d| < 2^22), of d times one scale, and of a term; and a
   mantissa times its scale. */
int32_t fs_bytes_fit(const fs_conv *c, int32_t exact, const fs_range *x, const fs_range *w) {
  if (x->nan || w->nan) return 0;
  if (w->largest > 127) return 0;
  const double bound = (double)x->largest * (double)w->largest * (double)c->block;
  if (bound >= 4194304.0) return 0;
  if (x->low > x->high || w->low > w->high) return 1; /* all terms are zero */
  if (x->low < -126 || x->high > 120 || w->low < -126 || w->high > 103) return 0;
  if (x->low + w->low < -126 || x->high + w->high > 105) return 0; /* d has 22 bits */
  if (!exact) return 1;
  /* Every term is a multiple of 2^low, and no partial sum reaches 2^high times the bound of all |d| together. */
  const double terms = (double)(c->window.kernel_height * c->window.kernel_width * c->group_blocks);
  return bound * terms * fs_power(x->high + w->high - x->low - w->low) < 9007199254740992.0;
}
