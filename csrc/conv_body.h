/* fs_prepare, fs_pack and fs_conv2d for one variant.

   A tile is `mr` output pixels times the NR filters of a panel. For each block under the window it computes the dot
   products d in vectors of FS_LANES filters and adds d * 2^s to its sums. Positions outside the image read a row of
   zeros: their d is 0, and adding +0 changes no sum, since a sum that began at +0 is never -0. Where a panel has a NaN
   or an infinity, which times 0 is no zero, tiles are single pixels, and those skip a tap outside the image.

   A variant defines FS_VARIANT_NAME, FS_LANES (32-bit lanes of a vector) and FS_TILE (pixels of a tile), and may define
   FS_MADD (sums of two neighbouring int16 products). */
#include "common.h"
#include "limbs.h"
#include "narrow_sums.h"

#define NR (2 * FS_LANES)
typedef int16_t v_int16 __attribute__((vector_size(4 * FS_LANES), aligned(2), may_alias));

#ifndef FS_MADD
FS_INLINE v_int32 multiply_add_pairs(v_int16 a, v_int16 b) {
  v_int32 x = (v_int32)a, y = (v_int32)b;
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
}
#define FS_MADD multiply_add_pairs
#endif

/* How the d * 2^s of a tile are formed and summed. */
typedef enum {
  PLAIN,  /* float operands without exponents: s = 0; fp32 sums */
  FLOATS, /* 2^s is a float and d * 2^s rounds once in float arithmetic; fp32 sums */
  SCALED, /* any s, by way of double; fp32 sums */
  DOUBLE, /* exact sums that fit into the 53 bits of a double */
  LIMBS   /* exact sums of any size */
} sum_mode;

int64_t FS_FN(fs_panel_outputs)(void) { return NR; }

/* A range of powers of two; empty while low > high. */
typedef struct {
  int32_t low, high;
} span;

FS_INLINE span no_span(void) { return (span){INT16_MAX, INT16_MIN}; }

FS_INLINE span join(span a, span b) {
  return (span){a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
}

/* The largest magnitude among n mantissas; for floats 1 where one is not zero. */
FS_INLINE int32_t largest_mantissa(int32_t is_float, const void *mantissas, int64_t n) {
  int32_t largest = 0;
  if (is_float) {
    const float *m = mantissas;
    for (int64_t i = 0; i < n; i++) largest |= (fs_bits(m[i]) << 1) != 0;
  } else {
    const int16_t *m = mantissas;
    int16_t low = 0, high = 0;
    for (int64_t i = 0; i < n; i++) {
      low = m[i] < low ? m[i] : low;
      high = m[i] > high ? m[i] : high;
    }
    largest = -low > high ? -low : high;
  }
  return largest;
}

/* The scale of a block, whose power is joined to `range`. A block of zeros adds nothing, so its power is 0. */
FS_INLINE float block_scale(int32_t largest, int32_t exponent, int32_t fraction_bits, span *range) {
  if (exponent == FS_NAN_EXPONENT) return NAN;
  if (largest == 0) return 1.0f;
  int32_t power = exponent - fraction_bits;
  *range = join(*range, (span){power, power});
  return (float)fs_power(power);
}

static __attribute__((noinline)) void prepare(const fs_conv *c, const int16_t *exponents, int32_t fraction_bits,
                                              fs_pixels *x) {
  const int64_t bytes = c->is_float ? 4 : 2;
  const char *m = x->mantissas;
  x->largest = 0;
  for (int64_t p = 0; p < x->pixels; p++) {
    span range = no_span();
    for (int64_t b = 0; b < c->blocks; b++, m += c->padded * bytes) {
      int32_t largest = largest_mantissa(c->is_float, m, c->padded);
      x->scales[p * c->blocks + b] = block_scale(largest, exponents[p * c->blocks + b], fraction_bits, &range);
      x->largest = largest > x->largest ? largest : x->largest;
    }
    x->low[p] = (int16_t)range.low;
    x->high[p] = (int16_t)range.high;
  }
  for (int64_t b = 0; b < c->blocks; b++) x->scales[x->pixels * c->blocks + b] = 1.0f;
}

void FS_FN(fs_prepare)(const fs_conv *c, const int16_t *exponents, int32_t fraction_bits, fs_pixels *x) {
  fs_fp_state state = fs_fp_enter();
  prepare(c, exponents, fraction_bits, x);
  fs_fp_leave(state);
}

/* Where the filters of a panel and its channel blocks lie. */
typedef struct {
  int64_t first_output, outputs, first_block, blocks;
} panel_shape;

FS_INLINE panel_shape shape_of_panel(const fs_conv *c, int64_t panel) {
  const int64_t filters = c->outputs / c->groups, channels = c->channels / c->groups;
  const int64_t panels = (filters + NR - 1) / NR, group = panel / panels, skip = panel % panels * NR;
  panel_shape s;
  s.first_output = group * filters + skip;
  s.outputs = filters - skip < NR ? filters - skip : NR;
  s.first_block = group * channels / c->block;
  s.blocks = ((group + 1) * channels + c->block - 1) / c->block - s.first_block;
  return s;
}

static __attribute__((noinline)) void pack(const fs_conv *c, const void *mantissas, const int16_t *exponents,
                                           int32_t fraction_bits, fs_filters *w) {
  const int64_t filters = c->outputs / c->groups, panels = c->groups * ((filters + NR - 1) / NR);
  const int64_t taps = c->window.kernel_height * c->window.kernel_width, steps = taps * c->group_blocks;
  const int64_t n = c->padded;
  w->largest = 0;
  for (int64_t panel = 0; panel < panels; panel++) {
    const panel_shape shape = shape_of_panel(c, panel);
    span range = no_span();
    w->finite[panel] = 1;
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t b = 0; b < shape.blocks; b++) {
        const int64_t step = panel * steps + (c->chwk ? b * taps + tap : tap * shape.blocks + b);
        for (int64_t j = 0; j < NR; j++) {
          const int64_t source = ((shape.first_output + j) * taps + tap) * c->blocks + shape.first_block + b;
          const int used = j < shape.outputs;
          int32_t largest = 0;
          if (c->is_float) {
            const float *m = (const float *)mantissas + source * n;
            float *to = (float *)w->mantissas + step * n * NR + j;
            for (int64_t k = 0; k < n; k++) {
              to[k * NR] = used ? m[k] : 0.0f;
              if (used && !isfinite(m[k])) w->finite[panel] = 0;
            }
            if (used) largest = largest_mantissa(1, m, n);
          } else {
            const int16_t *m = (const int16_t *)mantissas + source * n;
            int16_t *to = (int16_t *)w->mantissas + step * n * NR + 2 * j;
            for (int64_t k = 0; k < n; k += 2) {
              to[k * NR] = used ? m[k] : 0;
              to[k * NR + 1] = used ? m[k + 1] : 0;
            }
            if (used) largest = largest_mantissa(0, m, n);
          }
          if (largest > w->largest) w->largest = largest;
          if (!c->has_exponents) continue;
          const float scale = block_scale(largest, used ? exponents[source] : 0, fraction_bits, &range);
          w->scales[step * NR + j] = scale;
          if (isnan(scale)) w->finite[panel] = 0;
        }
      }
    w->low[panel] = (int16_t)range.low;
    w->high[panel] = (int16_t)range.high;
  }
}

void FS_FN(fs_pack)(const fs_conv *c, const void *mantissas, const int16_t *exponents, int32_t fraction_bits,
                    fs_filters *w) {
  fs_fp_state state = fs_fp_enter();
  pack(c, mantissas, exponents, fraction_bits, w);
  fs_fp_leave(state);
}

/* Everything of a call that its tiles share. */
typedef struct {
  const fs_conv *c;
  const fs_pixels *x;
  const fs_filters *w;
  int64_t taps, chunk; /* chunk: how many int16 pairs can be summed in 32 bits */
  double dot_bound;    /* no |d| is larger */
} call;

/* d (mr, NR) += a (mr, 2 * pairs) times w (pairs, NR, 2). */
FS_INLINE void dot_integers(const int mr, const char *const *a, const char *weights, int64_t pairs, v_int32 (*d)[2]) {
  const int16_t *w = (const int16_t *)weights;
  for (int64_t k = 0; k < pairs; k++, w += 2 * NR) {
    const v_int16 w0 = *(const v_int16 *)w, w1 = *(const v_int16 *)(w + NR);
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
      int32_t pair;
      memcpy(&pair, a[i] + 4 * k, sizeof pair);
      const v_int16 x = (v_int16)(pair + (v_int32){0});
      d[i][0] += FS_MADD(x, w0);
      d[i][1] += FS_MADD(x, w1);
    }
  }
}

/* d (mr, NR) += a (mr, n) times w (n, NR), product after product. */
FS_INLINE void dot_floats(const int mr, const char *const *a, const char *weights, int64_t n, v_float (*d)[2]) {
  const float *w = (const float *)weights;
  for (int64_t k = 0; k < n; k++, w += NR) {
    const v_float w0 = *(const v_float *)w, w1 = *(const v_float *)(w + FS_LANES);
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
      const float x = ((const float *)a[i])[k];
      d[i][0] += x * w0;
      d[i][1] += x * w1;
    }
  }
}

/* One tile: mr pixels (their pixel of x for each tap in `offsets`) times a panel, into `result`. */
FS_INLINE void tile(const int is_float, const sum_mode mode, const int mr, const call *o, int64_t panel,
                    const int64_t *offsets, float *result) {
  const fs_conv *c = o->c;
  const panel_shape shape = shape_of_panel(c, panel);
  const int64_t outer = c->chwk ? shape.blocks : 1, run = c->chwk ? 1 : shape.blocks;
  const int64_t steps = o->taps * c->group_blocks, n = c->padded, bytes = is_float ? 4 : 2;
  const char *weights = (const char *)o->w->mantissas + panel * steps * n * NR * bytes;
  const float *weight_scales = mode == PLAIN ? NULL : o->w->scales + panel * steps * NR;

  v_float acc[FS_TILE][2] = {{{0}}};
  double sums[FS_TILE][NR];
  float special[FS_TILE][NR];
  int64_t limbs[mode == LIMBS ? FS_TILE : 1][NR][FS_LIMBS];
  if (mode == DOUBLE) memset(sums, 0, sizeof sums);
  if (mode == LIMBS) memset(limbs, 0, sizeof limbs), memset(special, 0, sizeof special);

  for (int64_t first = 0; first < outer; first++)
    for (int64_t tap = 0; tap < o->taps; tap++) {
      const int64_t *pixel = offsets + tap * FS_TILE;
      if (pixel[0] < 0) { /* all outside */
        weights += run * n * NR * bytes;
        if (mode != PLAIN) weight_scales += run * NR;
        continue;
      }
      const char *at[FS_TILE];
      const float *scale_at[FS_TILE];
#pragma GCC unroll 8
      for (int i = 0; i < mr; i++) {
        const int64_t block = pixel[i] * c->blocks + shape.first_block + first;
        at[i] = (const char *)o->x->mantissas + block * n * bytes;
        if (mode != PLAIN) scale_at[i] = o->x->scales + block;
      }
      if (mode == PLAIN && n == 1) { /* blocks of one: the sum of the products, where adding +0 first changes nothing */
        dot_floats(mr, at, weights, run, acc);
        weights += run * NR * bytes;
        continue;
      }
      for (int64_t b = 0; b < run; b++, weights += n * NR * bytes) {
        v_float df[FS_TILE][2] = {{{0}}};
        v_int32 di[FS_TILE][2] = {{{0}}};
        double dd[FS_TILE][NR];
        if (is_float) {
          dot_floats(mr, at, weights, n, df);
        } else if (mode == FLOATS) {
          dot_integers(mr, at, weights, n / 2, di);
        } else {
          memset(dd, 0, sizeof dd);
          for (int64_t k = 0; k < n / 2; k += o->chunk) {
            const char *part[FS_TILE];
            for (int i = 0; i < mr; i++) part[i] = at[i] + 4 * k;
            memset(di, 0, sizeof di);
            dot_integers(mr, part, weights + 4 * k * NR, n / 2 - k < o->chunk ? n / 2 - k : o->chunk, di);
            for (int i = 0; i < mr; i++)
              for (int j = 0; j < NR; j++) dd[i][j] += (double)di[i][j / FS_LANES][j % FS_LANES];
          }
        }
        if (mode == PLAIN) {
          for (int i = 0; i < mr; i++) acc[i][0] += df[i][0], acc[i][1] += df[i][1];
        } else if (mode == FLOATS) {
          const v_float s0 = *(const v_float *)weight_scales, s1 = *(const v_float *)(weight_scales + FS_LANES);
#pragma GCC unroll 8
          for (int i = 0; i < mr; i++) {
            const float s = *scale_at[i];
            acc[i][0] += (is_float ? df[i][0] : __builtin_convertvector(di[i][0], v_float)) * (s * s0);
            acc[i][1] += (is_float ? df[i][1] : __builtin_convertvector(di[i][1], v_float)) * (s * s1);
          }
        } else {
          for (int i = 0; i < mr; i++) {
            const double s = (double)*scale_at[i];
            for (int j = 0; j < NR; j++) {
              const double d = is_float ? (double)df[i][j / FS_LANES][j % FS_LANES] : dd[i][j];
              const double t = d * (s * (double)weight_scales[j]);
              if (mode == SCALED) acc[i][j / FS_LANES][j % FS_LANES] += (float)t;
              else if (mode == DOUBLE) sums[i][j] += t;
              else if (isfinite(t)) fs_limbs_add(limbs[i][j], t);
              else special[i][j] += (float)t;
            }
          }
        }
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
          at[i] += n * bytes;
          if (mode != PLAIN) scale_at[i]++;
        }
        if (mode != PLAIN) weight_scales += NR;
      }
    }

  for (int i = 0; i < mr; i++)
    for (int64_t j = 0; j < shape.outputs; j++) {
      float *to = result + i * c->outputs + shape.first_output + j;
      if (mode == DOUBLE) *to = (float)sums[i][j];
      else if (mode == LIMBS) *to = special[i][j] != 0.0f ? special[i][j] : fs_limbs_round(limbs[i][j]);
      else *to = acc[i][j / FS_LANES][j % FS_LANES];
    }
}

typedef void tile_fn(const call *o, int64_t panel, const int64_t *offsets, float *result);
#define TILE(name, is_float, mode, mr)                                                                      \
  static __attribute__((noinline)) void name(const call *o, int64_t panel, const int64_t *offsets, float *r) { \
    tile(is_float, mode, mr, o, panel, offsets, r);                                                         \
  }
#define TILES(name, is_float, mode) TILE(name##_1, is_float, mode, 1) TILE(name##_n, is_float, mode, FS_TILE)
TILES(float_plain, 1, PLAIN)
TILES(float_floats, 1, FLOATS)
TILES(float_scaled, 1, SCALED)
TILES(float_limbs, 1, LIMBS)
TILES(integer_floats, 0, FLOATS)
TILES(integer_scaled, 0, SCALED)
TILES(integer_double, 0, DOUBLE)
TILES(integer_limbs, 0, LIMBS)

static tile_fn *const tiles[2][5][2] = {
    {{0, 0},
     {integer_floats_1, integer_floats_n},
     {integer_scaled_1, integer_scaled_n},
     {integer_double_1, integer_double_n},
     {integer_limbs_1, integer_limbs_n}},
    {{float_plain_1, float_plain_n},
     {float_floats_1, float_floats_n},
     {float_scaled_1, float_scaled_n},
     {0, 0},
     {float_limbs_1, float_limbs_n}},
};

#include "ordered_body.h"

/* The fastest mode that is exact for a tile: x spans the powers of its pixels' blocks, w those of the panel's. */
static sum_mode choose_mode(const call *o, span x, span w) {
  const fs_conv *c = o->c;
  const int empty = x.low > x.high || w.low > w.high; /* every d is 0, or a scale is NaN */
  const int32_t low = empty ? 0 : x.low + w.low, high = empty ? 0 : x.high + w.high;
  if (c->accumulator == FS_SUM_EXACT) {
    /* Every term is a multiple of 2^low, and no partial sum reaches 2^high times the bound of all |d| together. */
    const double bound = o->dot_bound * (double)(o->taps * c->group_blocks);
    const int fits = !c->is_float && bound < 9007199254740992.0 && bound * fs_power(high - low) < 9007199254740992.0;
    return fits ? DOUBLE : LIMBS;
  }
  if (!c->has_exponents) return PLAIN;
  /* A float d times the float 2^s rounds once. An integer d must not have been rounded before where the product is
     subnormal. */
  if (high > 127 || low < -149 || (!c->is_float && o->chunk * 2 < c->padded)) return SCALED;
  return !c->is_float && low < -126 && o->dot_bound > 16777216.0 ? SCALED : FLOATS;
}

/* For each tap the pixels of x under `count` output pixels from `first` on, the zero row where outside the image, or
   -1 where all are outside; and the powers of their blocks. */
static span locate(const call *o, int64_t first, int64_t count, int64_t *offsets) {
  const fs_window *v = &o->c->window;
  span range = no_span();
  for (int64_t i = 0; i < count; i++) {
    const int64_t column = (first + i) % v->out_width, line = (first + i) / v->out_width;
    const int64_t row = line % v->out_height, image = line / v->out_height;
    for (int64_t kh = 0; kh < v->kernel_height; kh++) {
      const int64_t y = row * v->stride_height + kh * v->dilation_height - v->pad_top;
      for (int64_t kw = 0; kw < v->kernel_width; kw++) {
        const int64_t z = column * v->stride_width + kw * v->dilation_width - v->pad_left;
        const int inside = y >= 0 && y < v->height && z >= 0 && z < v->width;
        const int64_t pixel = inside ? (image * v->height + y) * v->width + z : o->x->pixels;
        offsets[(kh * v->kernel_width + kw) * FS_TILE + i] = pixel;
        if (inside && o->x->low) range = join(range, (span){o->x->low[pixel], o->x->high[pixel]});
      }
    }
  }
  for (int64_t tap = 0; tap < o->taps; tap++) {
    int64_t outside = 0;
    for (int64_t i = 0; i < count; i++) outside += offsets[tap * FS_TILE + i] == o->x->pixels;
    if (outside == count) offsets[tap * FS_TILE] = -1;
  }
  return range;
}

static __attribute__((noinline)) void run_tiles(const call *o, int64_t first_pixel, int64_t last_pixel,
                                                int64_t first_panel, int64_t last_panel, int64_t *offsets,
                                                float *result) {
  const fs_conv *c = o->c;
  /* As many panels at a time as stay in half a megabyte of cache while the pixels pass by. */
  const int64_t bytes = o->taps * c->group_blocks * c->padded * NR * (c->is_float ? 4 : 2);
  const int64_t together = bytes < 524288 ? 524288 / bytes : 1;
  for (int64_t from = first_panel; from < last_panel; from += together) {
    const int64_t to = from + together < last_panel ? from + together : last_panel;
    int finite = 1;
    for (int64_t panel = from; panel < to; panel++) finite &= o->w->finite[panel];
    for (int64_t p = first_pixel; p < last_pixel;) {
      const int64_t count = finite && last_pixel - p >= FS_TILE ? FS_TILE : 1;
      const span x = locate(o, p, count, offsets);
      for (int64_t panel = from; panel < to; panel++) {
        const sum_mode mode = choose_mode(o, x, (span){o->w->low[panel], o->w->high[panel]});
        tile_fn *run = tiles[c->is_float][mode][count > 1];
        if (is_ordered(c)) run = ordered_tiles[c->is_float][mode == SCALED][count > 1];
        run(o, panel, offsets, result + p * c->outputs);
      }
      p += count;
    }
  }
}

void FS_FN(fs_conv2d)(const fs_conv *c, const fs_pixels *x, const fs_filters *w, int64_t first_pixel,
                      int64_t last_pixel, int64_t first_panel, int64_t last_panel, int64_t *offsets, float *result) {
  call o = {.c = c, .x = x, .w = w, .taps = c->window.kernel_height * c->window.kernel_width};
  if (!c->is_float) {
    const int64_t product = (int64_t)x->largest * w->largest;
    o.chunk = product == 0 ? c->padded : 2147483647 / (2 * product);
    o.dot_bound = (double)product * (double)c->block;
  }
  fs_fp_state state = fs_fp_enter();
  run_tiles(&o, first_pixel, last_pixel, first_panel, last_panel, offsets, result);
  fs_fp_leave(state);
}
