/* fs_bytes_conv2d with AVX-512 VNNI: tiles of up to 7 pixels times 32 outputs; 7 divides the 56, 28, 14 and 7 of the
   usual networks.

   vpdpbusd multiplies unsigned by signed bytes, hence the +128 of activations. A dot product d ends as the float
   1.5 * 2^23 + d (fs_bytes_pack); one fused multiply-subtract turns that into d * 2^sw, without rounding, and the next
   fused multiply-add adds that times 2^sx to the sum, rounding once: two operations, where converting d would take a
   third. Exact sums are kept in float64; there d ends as an integer. fs_bytes_fit says when this is exact. */
#include <immintrin.h>

#include "../common.h"

enum { PANEL = 32, PIXELS = 7 };

/* Keeps a loop-carried sum in one register; without it GCC 12 copies each of them twice per turn. */
#define PIN(v) __asm__("" : "+v"(v))

typedef struct {
  ptrdiff_t a_pixel, s_pixel, out_pixel; /* from one pixel of the tile to the next */
  const fs_term *terms;
  int64_t num_terms, quads;
  const uint8_t *w;
  __mmask16 mask[2];
} tile_work;

/* Exact sums of 16 outputs. */
typedef struct {
  __m512d low, high;
} wide;

/* c + d * w * x; by way of memory, since from there a conversion to float64 is one operation and from a register two. */
FS_INLINE wide add_wide(wide c, __m512i d, __m512d w_low, __m512d w_high, float x) {
  __m256i half[2] __attribute__((aligned(64)));
  _mm512_store_si512(half, d);
  __asm__("" : "+m"(half));
  const __m512d scale = _mm512_set1_pd((double)x);
  c.low = _mm512_fmadd_pd(_mm512_mul_pd(_mm512_cvtepi32_pd(half[0]), w_low), scale, c.low);
  c.high = _mm512_fmadd_pd(_mm512_mul_pd(_mm512_cvtepi32_pd(half[1]), w_high), scale, c.high);
  return c;
}

FS_INLINE __m512 round_wide(wide c) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(c.low)), _mm512_cvtpd_ps(c.high), 1);
}

/* px pixels at `a` with scales at `s`, blocks of 4 * quads (0: as many as `o` says), into `out`. */
FS_INLINE void micro(const int px, const int64_t known_quads, const int exact, const tile_work *o, const uint8_t *a,
                     const float *s, float *out) {
  const int64_t quads = known_quads ? known_quads : o->quads;
  const ptrdiff_t a_pixel = o->a_pixel, s_pixel = o->s_pixel;
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const uint8_t *w = o->w;
  __m512 c[PIXELS][2];
  wide sum[PIXELS][2];
  for (int i = 0; i < px; i++)
    for (int j = 0; j < 2; j++) {
      if (exact) sum[i][j] = (wide){_mm512_setzero_pd(), _mm512_setzero_pd()};
      else c[i][j] = _mm512_setzero_ps();
    }
  for (int64_t k = 0; k < o->num_terms; k++, w += PANEL * (8 + 4 * quads)) {
    const uint8_t *ak = a + o->terms[k].code;
    const float *sk = s + o->terms[k].scale;
    const __m512i start0 = _mm512_loadu_si512(w), start1 = _mm512_loadu_si512(w + 64);
#define WIDE(at) _mm512_cvtps_pd(_mm256_loadu_ps((const float *)(w + 128) + (at)))
#define SCALES                                                                                                      \
  const __m512 w0 = _mm512_loadu_ps(w + 128), w1 = _mm512_loadu_ps(w + 192);                                        \
  const __m512 o0 = _mm512_mul_ps(w0, magic), o1 = _mm512_mul_ps(w1, magic);                                        \
  const __m512d l0 = WIDE(0), h0 = WIDE(8), l1 = WIDE(16), h1 = WIDE(24);
#define FOLD(i, d0, d1)                                                                                             \
  do {                                                                                                              \
    if (exact) {                                                                                                    \
      sum[i][0] = add_wide(sum[i][0], d0, l0, h0, sk[(i) * s_pixel]);                                               \
      sum[i][1] = add_wide(sum[i][1], d1, l1, h1, sk[(i) * s_pixel]);                                               \
    } else {                                                                                                        \
      const __m512 sx = _mm512_set1_ps(sk[(i) * s_pixel]);                                                          \
      c[i][0] = _mm512_fmadd_ps(_mm512_fmsub_ps(_mm512_castsi512_ps(d0), w0, o0), sx, c[i][0]);                     \
      c[i][1] = _mm512_fmadd_ps(_mm512_fmsub_ps(_mm512_castsi512_ps(d1), w1, o1), sx, c[i][1]);                     \
    }                                                                                                               \
  } while (0)
    if (known_quads == 4) { /* the block's weights stay in eight registers */
      const uint8_t *wq = w + 8 * PANEL;
      __m512i p[8];
#pragma GCC unroll 8
      for (int q = 0; q < 8; q++) p[q] = _mm512_loadu_si512(wq + 64 * q);
      SCALES
#pragma GCC unroll 8
      for (int i = 0; i < px; i++) {
        __m512i d0 = start0, d1 = start1;
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
          int32_t quad;
          memcpy(&quad, ak + i * a_pixel + 4 * q, sizeof quad);
          const __m512i x = _mm512_set1_epi32(quad);
          d0 = _mm512_dpbusd_epi32(d0, x, p[2 * q]), d1 = _mm512_dpbusd_epi32(d1, x, p[2 * q + 1]);
        }
        FOLD(i, d0, d1);
      }
    } else { /* the block's sums stay in registers; the accumulators may spill, once per block */
      __m512i d0[PIXELS], d1[PIXELS];
#pragma GCC unroll 8
      for (int i = 0; i < px; i++) d0[i] = start0, d1[i] = start1;
      for (int64_t q = 0; q < quads; q++) {
        const uint8_t *wq = w + 8 * PANEL + 128 * q;
        const __m512i p0 = _mm512_loadu_si512(wq), p1 = _mm512_loadu_si512(wq + 64);
#pragma GCC unroll 8
        for (int i = 0; i < px; i++) {
          int32_t quad;
          memcpy(&quad, ak + i * a_pixel + 4 * q, sizeof quad);
          const __m512i x = _mm512_set1_epi32(quad);
          d0[i] = _mm512_dpbusd_epi32(d0[i], x, p0), d1[i] = _mm512_dpbusd_epi32(d1[i], x, p1);
          PIN(d0[i]);
          PIN(d1[i]);
        }
      }
      SCALES
#pragma GCC unroll 8
      for (int i = 0; i < px; i++) FOLD(i, d0[i], d1[i]);
    }
#undef FOLD
#undef SCALES
#undef WIDE
  }
  for (int i = 0; i < px; i++) {
    _mm512_mask_storeu_ps(out + i * o->out_pixel, o->mask[0], exact ? round_wide(sum[i][0]) : c[i][0]);
    _mm512_mask_storeu_ps(out + i * o->out_pixel + 16, o->mask[1], exact ? round_wide(sum[i][1]) : c[i][1]);
  }
}

typedef void micro_fn(const tile_work *o, const uint8_t *a, const float *s, float *out);
#define MICRO(name, px, quads, exact)                                                                             \
  static __attribute__((noinline)) void name##_##px(const tile_work *o, const uint8_t *a, const float *s, float *r) { \
    micro(px, quads, exact, o, a, s, r);                                                                          \
  }
#define MICRO_4(name, quads, exact) \
  MICRO(name, 1, quads, exact) MICRO(name, 2, quads, exact) MICRO(name, 3, quads, exact) MICRO(name, 4, quads, exact)
#define MICRO_7(name, quads, exact) \
  MICRO_4(name, quads, exact) MICRO(name, 5, quads, exact) MICRO(name, 6, quads, exact) MICRO(name, 7, quads, exact)
MICRO_7(fp32_16, 4, 0)
MICRO_7(fp32_any, 0, 0)
MICRO_7(exact, 0, 1)
#define NAMES_4(name) name##_1, name##_2, name##_3, name##_4
#define NAMES_7(name) NAMES_4(name), name##_5, name##_6, name##_7
/* By exact, and block 16 or another. */
static micro_fn *const micros[2][2][PIXELS + 1] = {
    {{0, NAMES_7(fp32_any)}, {0, NAMES_7(fp32_16)}},
    {{0, NAMES_7(exact)}, {0, NAMES_7(exact)}},
};

static __attribute__((noinline)) int64_t bytes_conv2d(const fs_conv *c, int32_t exact, const fs_bytes *x,
                                                      const fs_term *terms, const uint8_t *packed,
                                                      const fs_chain *chain, int64_t first_pixel, int64_t last_pixel,
                                                      int64_t first_panel, int64_t last_panel, float *scratch,
                                                      float *result) {
  const fs_window *v = &c->window;
  const int64_t filters = c->outputs / c->groups, panels = (filters + PANEL - 1) / PANEL;
  const int64_t n = v->kernel_height * v->kernel_width * c->group_blocks, panel_bytes = n * PANEL * (8 + x->block);
  const int64_t pixel_bytes = x->blocks * x->block, column = v->stride_width;
  micro_fn *const *table = micros[exact][x->block == 16];
  tile_work o = {column * pixel_bytes, column * x->blocks, c->outputs, terms, n, x->block / 4, NULL, {0, 0}};
  /* Tiles of about equal width; a row of outputs never shares a tile with the next. */
  const int64_t per_row = (v->out_width + PIXELS - 1) / PIXELS;
  const int64_t width = (v->out_width + per_row - 1) / per_row;
  /* As many pixels as have their results in a quarter of a megabyte of cache until the chain has passed over them. */
  const int64_t together = 65536 / c->outputs / width * width, step = together > 0 ? together : width;
  int64_t saturated = 0;
  for (int64_t begin = first_pixel; begin < last_pixel; begin += step) {
    const int64_t end = begin + step < last_pixel ? begin + step : last_pixel;
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
      const int64_t group = panel / panels, skip = panel % panels * PANEL, output = group * filters + skip;
      const int64_t outs = filters - skip < PANEL ? filters - skip : PANEL;
      const int64_t first_block = group * (c->channels / c->groups) / c->block;
      o.w = packed + panel * panel_bytes;
      o.mask[0] = (__mmask16)(outs < 16 ? (1 << outs) - 1 : 0xffff);
      o.mask[1] = (__mmask16)(outs < 16 ? 0 : (1 << (outs - 16)) - 1);
      int64_t line = begin / v->out_width, at = begin % v->out_width;
      for (int64_t p = begin; p < end;) {
        const int64_t row = line / v->out_height * x->height + line % v->out_height * v->stride_height;
        const int64_t stop = v->out_width - at < end - p ? v->out_width : at + end - p;
        for (; at < stop; at += width) {
          const int64_t pixel = row * x->width + at * column, left = stop - at, px = left < width ? left : width;
          table[px](&o, x->codes + pixel * pixel_bytes + first_block * x->block, x->scales + pixel * x->blocks + first_block,
                    result + p * c->outputs + output);
          p += px;
        }
        line++, at = 0;
      }
    }
    if (chain)
      saturated += stages_of_type(chain->stages, chain->count, chain->pointwise, 1, result, c->outputs, begin, end,
                                  scratch, chain->rounded, result);
  }
  return saturated;
}

int64_t FS_FN(fs_bytes_conv2d)(const fs_conv *c, int32_t exact, const fs_bytes *x, const fs_term *terms,
                               const uint8_t *packed, const fs_chain *chain, int64_t first_pixel, int64_t last_pixel,
                               int64_t first_panel, int64_t last_panel, float *scratch, float *result) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = bytes_conv2d(c, exact, x, terms, packed, chain, first_pixel, last_pixel, first_panel,
                                         last_panel, scratch, result);
  fs_fp_leave(state);
  return saturated;
}
