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
  return panel * (layout == FS_BFLOAT16 ? 2 * codes : 8 * terms + (layout == FS_WORDS ? 2 : 1) * codes);
}

/* Mantissas of weights and where their blocks are. */
typedef struct {
  const fs_conv *c;
  int64_t code_bytes;
  const char *mantissas;
  const int16_t *exponents;
  int64_t fraction_bits;
} weights;

FS_INLINE int32_t mantissa(const weights *w, int64_t at) {
  return w->code_bytes == 1 ? ((const int8_t *)w->mantissas)[at] : ((const int16_t *)w->mantissas)[at];
}

/* The block of an output under a tap, the `b`-th of its group. */
FS_INLINE int64_t block_at(const fs_conv *c, int64_t output, int64_t tap, int64_t b) {
  const int64_t taps = c->window.kernel_height * c->window.kernel_width, group = output / (c->outputs / c->groups);
  return (output * taps + tap) * c->blocks + group * (c->channels / c->groups) / c->block + b;
}

/* The largest magnitude in a block. */
static int32_t largest_of(const weights *w, int64_t source) {
  int32_t largest = 0;
  for (int64_t k = 0; k < w->c->block; k++) {
    const int32_t q = mantissa(w, source * w->c->block + k), magnitude = q < 0 ? -q : q;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

FS_INLINE int32_t power_of(const weights *w, int64_t source) {
  return (int32_t)(w->exponents[source] - w->fraction_bits);
}

/* The lowest power of an output's blocks; 0 if all are zero. */
static int32_t lowest_power(const weights *w, int64_t output) {
  const int64_t taps = w->c->window.kernel_height * w->c->window.kernel_width;
  int32_t low = INT32_MAX;
  for (int64_t tap = 0; tap < taps; tap++)
    for (int64_t b = 0; b < w->c->group_blocks; b++) {
      const int64_t source = block_at(w->c, output, tap, b);
      if (power_of(w, source) < low && largest_of(w, source) > 0) low = power_of(w, source);
    }
  return low == INT32_MAX ? 0 : low;
}

/* Whether every output's mantissas can be shifted to the lowest power of its blocks without leaving 16 bits, nor their
   dot products with mantissas that are no longer 32 bits. */
static int can_align(const weights *w) {
  const fs_conv *c = w->c;
  const int64_t taps = c->window.kernel_height * c->window.kernel_width;
  int64_t largest = 0, shifted = 0;
  for (int64_t output = 0; output < c->outputs; output++) {
    const int32_t low = lowest_power(w, output);
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t b = 0; b < c->group_blocks; b++) {
        const int64_t source = block_at(c, output, tap, b), m = largest_of(w, source);
        if (m > 0 && power_of(w, source) - low > 15) return 0;
        if (m == 0) continue;
        largest = m > largest ? m : largest;
        shifted = m << (power_of(w, source) - low) > shifted ? m << (power_of(w, source) - low) : shifted;
      }
  }
  return shifted < 1 << 15 && (double)shifted * (double)largest * (double)c->block < 0x1p31;
}

/* Per panel and term, as bytes or words: what a dot product of bytes starts from (panel x int32), the scales (panel x
   float), and the mantissas, four bytes at a time, (bytes / 4, panel, 4). Biased activations make a dot product start from
   minus the bias times the sum of the mantissas; it also starts from the bits of 1.5 * 2^23, so that while |d| < 2^22 it
   ends as the float 1.5 * 2^23 + d. As bfloat16: the mantissas times their scales, two by two, (size / 2, panel, 2). */
void fs_bytes_pack(const fs_conv *c, int64_t panel, int32_t layout, int64_t tail, int32_t chwk, const void *mantissas,
                   const int16_t *exponents, int64_t fraction_bits, uint8_t *packed, fs_range *range) {
  const int floats = layout == FS_BFLOAT16;
  const int64_t code_bytes = layout == FS_WORDS ? 2 : 1, unit = floats ? 2 : code_bytes, head = floats ? 0 : 8;
  const weights w = {c, code_bytes, mantissas, exponents, fraction_bits};
  const int64_t filters = c->outputs / c->groups, panels = (filters + panel - 1) / panel, block = c->block;
  const int64_t taps = c->window.kernel_height * c->window.kernel_width, n = taps * c->group_blocks;
  const uint32_t bias = layout == FS_BIASED_BYTES ? 128 : 0;
  for (int64_t i = 0; i < c->outputs * taps * c->blocks; i++) range->nan |= exponents[i] == FS_NAN_EXPONENT;
  range->aligned = layout == FS_WORDS && c->accumulator == FS_SUM_FP32 && !range->nan && can_align(&w);
  for (int64_t p = 0; p < c->groups * panels; p++) {
    const int64_t group = p / panels, skip = p % panels * panel;
    int32_t common[FS_MAX_PANEL];
    for (int64_t j = 0; range->aligned && j < panel && skip + j < filters; j++)
      common[j] = lowest_power(&w, group * filters + skip + j);
    for (int64_t i = 0; i < n; i++) {
      int64_t tap, b;
      split_term(c, chwk, i, &tap, &b);
      const int64_t size = b + 1 < c->blocks ? block : tail, bytes = panel * (head + unit * size);
      memset(packed, 0, (size_t)bytes);
      for (int64_t j = 0; j < panel; j++) {
        int32_t sum = 0;
        float scale = 1.0f;
        if (skip + j < filters) {
          const int64_t source = block_at(c, group * filters + skip + j, tap, b);
          const int32_t largest = largest_of(&w, source);
          const int32_t power = range->aligned ? common[j] : power_of(&w, source);
          const int32_t shift = largest > 0 ? power_of(&w, source) - power : 0;
          if (!range->nan && (largest > 0 || range->aligned)) scale = (float)fs_power(power);
          if (!range->nan && largest > 0) {
            range->low = power < range->low ? power : range->low;
            range->high = power > range->high ? power : range->high;
            range->largest = largest << shift > range->largest ? largest << shift : range->largest;
          }
          for (int64_t k = 0; k < size; k++) {
            const int32_t q = mantissa(&w, source * block + k) * (1 << shift);
            const uint32_t value = floats ? fs_bits((float)q * scale) >> 16 : (uint32_t)q;
            const int64_t at = k * unit;
            sum += q;
            memcpy(packed + panel * (head + at / 4 * 4) + 4 * j + at % 4, &value, (size_t)unit);
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

/* Every product on the way must be exact: of bytes the float of d (|d| < 2^22), d times one scale, a term, and a
   mantissa times its scale. The dot product of words has 31 bits and is rounded once as a float; so is the term then,
   being a normal number. Sums that are multiplied by one scale at the end must overflow neither before nor as they would
   with it, which is for good; rounding makes no sum twice as large. Sums of bf16 stay below 2^10 times the largest term,
   as that no longer changes them there, and must not overflow. */
int32_t fs_bytes_fit(const fs_conv *c, int32_t layout, const fs_range *x, const fs_range *w) {
  if (x->nan || w->nan) return FS_BYTES_NOT;
  if (layout != FS_WORDS && w->largest > 127) return FS_BYTES_NOT;
  const int32_t bits = layout == FS_WORDS ? 31 : 22;
  const double bound = (double)x->largest * (double)w->largest * (double)c->block;
  if (bound >= fs_power(bits)) return FS_BYTES_NOT;
  const int no_weight = w->low > w->high, empty = x->low > x->high || no_weight; /* all terms are zero */
  const int32_t low = empty ? 0 : x->low + w->low, high = empty ? 0 : x->high + w->high;
  const int32_t w_high = no_weight ? 0 : w->high; /* a zero, too, is scaled by its weight's power on the way */
  if (!empty && (x->low < -126 || x->high > 120 || w->low < -126)) return FS_BYTES_NOT;
  if (w_high > 125 - bits || low < -126 || high > 127 - bits) return FS_BYTES_NOT;
  const double terms = (double)(c->window.kernel_height * c->window.kernel_width * c->group_blocks);
  if (c->accumulator == FS_SUM_FP32) {
    const int32_t x_high = empty ? 0 : x->high, most = high > x_high ? high : x_high;
    return w->aligned && bound * terms * fs_power(most) < 0x1p127 ? FS_BYTES_ALIGNED : FS_BYTES_FP32;
  }
  if (c->accumulator == FS_SUM_BF16) return high + bits < 100 ? FS_BYTES_NARROW : FS_BYTES_NOT;
  if (c->accumulator == FS_SUM_FP16) {
    if (w_high + 100 > 125 - bits) return FS_BYTES_CAREFUL; /* sums are kept times 2^100 */
    return low < -24 ? FS_BYTES_DEEP : FS_BYTES_NARROW;
  }
  /* Every term is a multiple of 2^low, and no partial sum reaches 2^high times the bound of all |d| together. */
  return bound < 0x1p24 && bound * terms * fs_power(high - low) < 0x1p53 ? FS_BYTES_EXACT : FS_BYTES_NOT;
}
