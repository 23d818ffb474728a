/* The byte convolution of one variant with vectors of bytes: tiles of up to FS_BYTES_PIXELS pixels times 2 * FS_LANES outputs. 7 pixels divide the
   56, 28, 14 and 7 of the usual networks, 4 pixels do with 16 registers.

   A dot product d ends as the float 1.5 * 2^23 + d (fs_bytes_pack); one fused multiply-subtract turns that into d * 2^sw,
   without rounding, and the next fused multiply-add adds that times 2^sx to the sum, rounding once: two operations,
   where converting d would take a third. Exact sums are kept in float64, to which terms are widened. fs_bytes_fit says
   when this is exact.

   A variant defines FS_BYTES_PIXELS, FS_DOT(d, x, w), which adds to each lane of d the products of four bytes of x by
   four of w, FS_FMADD, FS_FMSUB and FS_WIDEN, float64 of FS_LANES / 2 floats. */
#include "bytes_tile.h"

enum { PANEL = 2 * FS_LANES, PIXELS = FS_BYTES_PIXELS };
typedef int32_t v_dots __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
typedef float v_sums __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
typedef float v_half_sums __attribute__((vector_size(2 * FS_LANES), aligned(4), may_alias));
typedef double v_wide __attribute__((vector_size(4 * FS_LANES), aligned(8), may_alias));

/* Keeps a loop-carried sum in one register; without it GCC 12 copies each of them twice per turn. */
#define PIN(v) __asm__("" : "+v"(v))


/* Exact sums of FS_LANES outputs. */
typedef struct {
  v_wide low, high;
} wide;

/* c + t; by way of memory, since from there widening is one operation and from a register two. */
FS_INLINE wide add_wide(wide c, v_sums t) {
  v_half_sums half[2];
  memcpy(half, &t, sizeof t);
  __asm__("" : "+m"(half));
  c.low += FS_WIDEN(half[0]);
  c.high += FS_WIDEN(half[1]);
  return c;
}

FS_INLINE v_sums round_wide(wide c) {
  const v_half_sums half[2] = {__builtin_convertvector(c.low, v_half_sums), __builtin_convertvector(c.high, v_half_sums)};
  v_sums r;
  memcpy(&r, half, sizeof r);
  return r;
}

FS_INLINE v_dots four_bytes(const uint8_t *x) {
  int32_t quad;
  memcpy(&quad, x, sizeof quad);
  return quad + (v_dots){0};
}

/* px pixels at `codes` with scales at `s`, terms of 4 * known_quads codes (0: as many as they say), into `out`. A float
   in all lanes is written x - 0: adding 0 would turn a -0 into 0 and so be an operation. */
FS_INLINE void micro(const int px, const int64_t known_quads, const int exact, const tile_work *o, const void *codes,
                     const float *s, float *out) {
  const uint8_t *a = codes;
  const ptrdiff_t a_pixel = o->a_pixel, s_pixel = o->s_pixel;
  const v_sums magic = 12582912.0f - (v_sums){0};
  const uint8_t *w = o->w;
  v_sums c[PIXELS][2];
  wide sum[PIXELS][2];
  for (int i = 0; i < px; i++)
    for (int j = 0; j < 2; j++) {
      if (exact) sum[i][j] = (wide){{0}, {0}};
      else c[i][j] = (v_sums){0};
    }
  for (int64_t k = 0, quads; k < o->num_terms; k++, w += PANEL * (8 + 4 * quads)) {
    quads = known_quads ? known_quads : o->terms[k].size / 4;
    const uint8_t *ak = a + o->terms[k].code;
    const float *sk = s + o->terms[k].scale;
    const v_dots *start = (const v_dots *)w;
    const v_sums *scales = (const v_sums *)(w + 4 * PANEL);
#define SCALES const v_sums w0 = scales[0], w1 = scales[1], o0 = w0 * magic, o1 = w1 * magic;
#define FOLD(i, d0, d1)                                                                            \
  do {                                                                                             \
    const v_sums sx = sk[(i) * s_pixel] - (v_sums){0};                                             \
    const v_sums t0 = FS_FMSUB((v_sums)(d0), w0, o0), t1 = FS_FMSUB((v_sums)(d1), w1, o1);         \
    if (exact) {                                                                                   \
      sum[i][0] = add_wide(sum[i][0], t0 * sx);                                                    \
      sum[i][1] = add_wide(sum[i][1], t1 * sx);                                                    \
    } else {                                                                                       \
      c[i][0] = FS_FMADD(t0, sx, c[i][0]);                                                         \
      c[i][1] = FS_FMADD(t1, sx, c[i][1]);                                                         \
    }                                                                                              \
  } while (0)
    if (known_quads == 4 && PIXELS > 4) { /* the block's weights stay in eight registers */
      const v_dots *wq = (const v_dots *)(w + 8 * PANEL);
      v_dots p[8];
#pragma GCC unroll 8
      for (int q = 0; q < 8; q++) p[q] = wq[q];
      SCALES
#pragma GCC unroll 8
      for (int i = 0; i < px; i++) {
        v_dots d0 = start[0], d1 = start[1];
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
          const v_dots x = four_bytes(ak + i * a_pixel + 4 * q);
          d0 = FS_DOT(d0, x, p[2 * q]), d1 = FS_DOT(d1, x, p[2 * q + 1]);
        }
        FOLD(i, d0, d1);
      }
    } else { /* the block's sums stay in registers; the accumulators may spill, once per block */
      v_dots d0[PIXELS], d1[PIXELS];
#pragma GCC unroll 8
      for (int i = 0; i < px; i++) d0[i] = start[0], d1[i] = start[1];
      for (int64_t q = 0; q < quads; q++) {
        const v_dots *wq = (const v_dots *)(w + 8 * PANEL + 4 * PANEL * q);
        const v_dots p0 = wq[0], p1 = wq[1];
#pragma GCC unroll 8
        for (int i = 0; i < px; i++) {
          const v_dots x = four_bytes(ak + i * a_pixel + 4 * q);
          d0[i] = FS_DOT(d0[i], x, p0), d1[i] = FS_DOT(d1[i], x, p1);
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
  }
  for (int i = 0; i < px; i++) {
    const v_sums first = exact ? round_wide(sum[i][0]) : c[i][0], second = exact ? round_wide(sum[i][1]) : c[i][1];
    float *to = out + i * o->out_pixel;
    if (o->outs == PANEL) {
      ((v_sums *)to)[0] = first;
      ((v_sums *)to)[1] = second;
    } else {
      const v_sums both[2] = {first, second};
      memcpy(to, both, (size_t)o->outs * sizeof *to);
    }
  }
}

#define MICRO(name, px, quads, exact)                                                                            \
  static __attribute__((noinline)) void name##_##px(tile_work *o, int n, const void *codes, const float *s, float *out) { \
    (void)n;                                                                                                   \
    micro(px, quads, exact, o, codes, s, out);                                                                   \
  }
#define MICRO_4(name, quads, exact) \
  MICRO(name, 1, quads, exact) MICRO(name, 2, quads, exact) MICRO(name, 3, quads, exact) MICRO(name, 4, quads, exact)
#define MICRO_7(name, quads, exact) \
  MICRO_4(name, quads, exact) MICRO(name, 5, quads, exact) MICRO(name, 6, quads, exact) MICRO(name, 7, quads, exact)
#if FS_BYTES_PIXELS == 7
#define MICRO_ALL MICRO_7
#define NAMES NAMES_7
#else
#define MICRO_ALL MICRO_4
#define NAMES NAMES_4
#endif
MICRO_ALL(fp32_16, 4, 0)
MICRO_ALL(fp32_any, 0, 0)
MICRO_ALL(exact, 0, 1)
#define NAMES_4(name) name##_1, name##_2, name##_3, name##_4
#define NAMES_7(name) NAMES_4(name), name##_5, name##_6, name##_7
/* By exact, and block 16 or another. */
static micro_fn *const micros[2][2][PIXELS + 1] = {
    {{0, NAMES(fp32_any)}, {0, NAMES(fp32_16)}},
    {{0, NAMES(exact)}, {0, NAMES(exact)}},
};
FS_INLINE micro_fn *const *micros_of(int32_t exact, int64_t block) { return micros[exact][block == 16]; }
typedef uint8_t code;
FS_INLINE void leave_tiles(void) {}
#include "bytes_layer_body.h"
