/* What the byte convolutions of all variants share: the order of the terms, packed weights, and when they are exact. */
#include "common.h"

void fs_bytes_terms(const fs_conv *c, int32_t chwk, fs_term *terms) {
  const fs_window *v = &c->window;
  const int64_t taps = v->kernel_height * v->kernel_width, n = taps * c->group_blocks;
  for (int64_t i = 0; i < n; i++) {
    const int64_t tap = chwk ? i % taps : i / c->group_blocks, block = chwk ? i / taps : i % c->group_blocks;
    const int64_t row = tap / v->kernel_width * v->dilation_height, column = tap % v->kernel_width * v->dilation_width;
    const int64_t at = (row * v->width + column) * c->blocks + block;
    terms[i] = (fs_term){(int32_t)(at * c->block), (int32_t)at};
  }
}

/* Per panel and term: what a dot product starts from (panel x int32), the scales (panel x float), and the mantissas,
   four by four, (block / 4, panel, 4). Activations carry a bias, so a dot product starts from minus that times the sum of the
   mantissas and from the bits of 1.5 * 2^23: while |d| < 2^22 it then ends as the float 1.5 * 2^23 + d. */
void fs_bytes_pack(const fs_conv *c, int64_t panel, int64_t bias, int32_t chwk, const int8_t *mantissas,
                   const int16_t *exponents, int64_t fraction_bits, uint8_t *packed, fs_range *range) {
  const int64_t filters = c->outputs / c->groups, panels = (filters + panel - 1) / panel, block = c->block;
  const int64_t taps = c->window.kernel_height * c->window.kernel_width, n = taps * c->group_blocks;
  for (int64_t p = 0; p < c->groups * panels; p++) {
    const int64_t group = p / panels, skip = p % panels * panel;
    const int64_t first_block = group * (c->channels / c->groups) / block;
    for (int64_t i = 0; i < n; i++, packed += panel * (8 + block)) {
      const int64_t tap = chwk ? i % taps : i / c->group_blocks, b = chwk ? i / taps : i % c->group_blocks;
      memset(packed, 0, (size_t)(panel * (8 + block)));
      for (int64_t j = 0; j < panel; j++) {
        int32_t sum = 0, largest = 0;
        float scale = 1.0f;
        if (skip + j < filters) {
          const int64_t source = ((group * filters + skip + j) * taps + tap) * c->blocks + first_block + b;
          const int8_t *m = mantissas + source * block;
          for (int64_t k = 0; k < block; k++) {
            const int32_t magnitude = m[k] < 0 ? -m[k] : m[k];
            sum += m[k];
            largest = magnitude > largest ? magnitude : largest;
            packed[panel * (8 + k / 4 * 4) + 4 * j + k % 4] = (uint8_t)m[k];
          }
          const int32_t power = (int32_t)(exponents[source] - fraction_bits);
          if (exponents[source] == FS_NAN_EXPONENT) {
            range->nan = 1;
          } else if (largest > 0) {
            scale = (float)fs_power(power);
            range->low = power < range->low ? power : range->low;
            range->high = power > range->high ? power : range->high;
            range->largest = largest > range->largest ? largest : range->largest;
          }
        }
        const uint32_t start = 0x4B400000u - (uint32_t)bias * (uint32_t)sum;
        memcpy(packed + 4 * j, &start, sizeof start);
        memcpy(packed + 4 * (panel + j), &scale, sizeof scale);
      }
    }
  }
}

/* Every product on the way must be exact: the float of d (|d| < 2^22), of d times one scale, and of a term. */
int32_t fs_bytes_fit(const fs_conv *c, int32_t exact, const fs_range *x, const fs_range *w) {
  if (x->nan || w->nan) return 0;
  if (w->largest > 127) return 0;
  const double bound = (double)x->largest * (double)w->largest * (double)c->block;
  if (bound >= 4194304.0) return 0;
  if (x->low > x->high || w->low > w->high) return 1; /* all terms are zero */
  if (x->low < -126 || x->high > 127 || w->low < -126 || w->high > 103) return 0;
  if (x->low + w->low < -126 || x->high + w->high > 105) return 0; /* d has 22 bits */
  if (!exact) return 1;
  /* Every term is a multiple of 2^low, and no partial sum reaches 2^high times the bound of all |d| together. */
  const double terms = (double)(c->window.kernel_height * c->window.kernel_width * c->group_blocks);
  return bound * terms * fs_power(x->high + w->high - x->low - w->low) < 9007199254740992.0;
}
