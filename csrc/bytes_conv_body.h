/* The byte convolution of one variant with vectors of bytes, or with FS_BYTES_WORDS of int16: tiles of up to
   FS_BYTES_PIXELS pixels times 2 * FS_LANES outputs. 7 pixels divide the 56, 28, 14 and 7 of the usual networks, 4
   pixels do with 16 registers. A variant defines FS_BYTES_PIXELS and what bytes_sums_body.h asks for. */
#include "bytes_sums_body.h"
#include "bytes_tile.h"

enum { PANEL = 2 * FS_LANES, PIXELS = FS_BYTES_PIXELS };

/* Keeps a loop-carried sum in one register; without it GCC 12 copies each of them twice per turn. */
#define PIN(v) __asm__("" : "+v"(v))

FS_INLINE v_dots four_bytes(const uint8_t *x) {
  int32_t quad;
  memcpy(&quad, x, sizeof quad);
  return quad + (v_dots){0};
}

/* px pixels at `codes` with scales at `s`, terms of 4 * known_quads bytes (0: as many as they say), into `out`. Returns
   whether quick sums may be wrong. */
FS_INLINE int micro(const int px, const int64_t known_quads, const int mode, const tile_work *o, const void *codes,
                    const float *s, float *out) {
  const uint8_t *a = codes;
  const ptrdiff_t a_pixel = o->a_pixel * (ptrdiff_t)sizeof(code), s_pixel = o->s_pixel;
  const narrow type = narrow_of(o->accumulator);
  const v_sums magic = all(12582912.0f), lift = all(type.lift);
  const int exact = mode == FS_BYTES_EXACT, quick = is_quick(mode);
  const uint8_t *w = o->w, *ahead = o->ahead;
  v_sums c[PIXELS][2];
  wide sum[PIXELS][2];
  for (int i = 0; i < px; i++)
    for (int j = 0; j < 2; j++) {
      if (exact) sum[i][j] = (wide){{0}, {0}};
      else c[i][j] = (v_sums){0};
    }
  const v_sums *scales = NULL;
  for (int64_t k = 0, quads; k < o->num_terms; k++, w += PANEL * (8 + 4 * quads)) {
    quads = known_quads ? known_quads : o->terms[k].size * (int64_t)sizeof(code) / 4;
    const uint8_t *ak = a + o->terms[k].code * (ptrdiff_t)sizeof(code);
    const float *sk = s + o->terms[k].scale;
    const v_dots *start = (const v_dots *)w;
    scales = (const v_sums *)(w + 4 * PANEL);
#define SCALES                         \
  v_sums w0 = scales[0], w1 = scales[1]; \
  if (quick) w0 *= lift, w1 *= lift;     \
  const v_sums o0 = w0 * magic, o1 = w1 * magic;
#define FOLD(i, d0, d1)                                                                            \
  do {                                                                                             \
    const v_sums sx = all(sk[(i) * s_pixel]);                                                      \
    const v_sums t0 = scaled_dot(mode, d0, w0, o0), t1 = scaled_dot(mode, d1, w1, o1);             \
    if (exact) {                                                                                   \
      sum[i][0] = add_wide(sum[i][0], t0 * sx);                                                    \
      sum[i][1] = add_wide(sum[i][1], t1 * sx);                                                    \
    } else if (quick || mode == FS_BYTES_CAREFUL) {                                                \
      c[i][0] = add_narrow(mode, &type, t0, sx, c[i][0]);                                          \
      c[i][1] = add_narrow(mode, &type, t1, sx, c[i][1]);                                          \
    } else {                                                                                       \
      c[i][0] = FS_FMADD(t0, sx, c[i][0]);                                                         \
      c[i][1] = FS_FMADD(t1, sx, c[i][1]);                                                         \
    }                                                                                              \
  } while (0)
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(ahead + 64, 0, 2);
    ahead += FS_AHEAD;
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
      for (int i = 0; i < px; i++) d0[i] = WORDS ? (v_dots){0} : start[0], d1[i] = WORDS ? (v_dots){0} : start[1];
#pragma GCC unroll 8
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
  v_sums beyond = {0}; /* NaN where a sum is not finite */
  for (int i = 0; i < px; i++) {
    v_sums first = exact ? round_wide(sum[i][0]) : c[i][0], second = exact ? round_wide(sum[i][1]) : c[i][1];
    if (mode == FS_BYTES_ALIGNED) first *= scales[0], second *= scales[1];
    if (mode == FS_BYTES_CAREFUL) first += 0.0f, second += 0.0f; /* no -0 */
    if (quick) {
      beyond += (first - first) + (second - second);
      first *= 1.0f / lift, second *= 1.0f / lift;
    }
    float *to = out + i * o->out_pixel;
    if (o->outs == PANEL) {
      ((v_sums *)to)[0] = first;
      ((v_sums *)to)[1] = second;
    } else {
      const v_sums both[2] = {first, second};
      memcpy(to, both, (size_t)o->outs * sizeof *to);
    }
  }
  return quick && any_nan(beyond);
}

#define MICRO(name, px, quads, mode)                                                                                \
  static __attribute__((noinline)) void name##_##px(tile_work *o, int n, const void *codes, const float *s, float *r) { \
    (void)n;                                                                                                        \
    micro(px, quads, mode, o, codes, s, r);                                                                         \
  }
/* The quick sums are behind a call of their own, which reading the CPU's flags cannot pass. */
#define MICRO_QUICK(name, px, quads, mode, careful)                                                                   \
  static __attribute__((noinline)) int name##_try_##px(const tile_work *o, const void *codes, const float *s, float *r) { \
    return micro(px, quads, mode, o, codes, s, r);                                                                    \
  }                                                                                                                   \
  static void name##_##px(tile_work *o, int n, const void *codes, const float *s, float *r) {                         \
    if (o->wary == 0) {                                                                                               \
      _mm_setcsr(FS_IEEE);                                                                                            \
      const int wrong = name##_try_##px(o, codes, s, r);                                                              \
      if (!wrong && !(_mm_getcsr() & _MM_EXCEPT_INEXACT)) return;                                                     \
      o->wary = 8;                                                                                                    \
    }                                                                                                                 \
    o->wary--;                                                                                                        \
    careful##_##px(o, n, codes, s, r);                                                                                \
  }
#define UP_TO_4(one, name, ...) \
  one(name, 1, __VA_ARGS__) one(name, 2, __VA_ARGS__) one(name, 3, __VA_ARGS__) one(name, 4, __VA_ARGS__)
#define UP_TO_7(one, name, ...) \
  UP_TO_4(one, name, __VA_ARGS__) one(name, 5, __VA_ARGS__) one(name, 6, __VA_ARGS__) one(name, 7, __VA_ARGS__)
#define NAMES_4(name) name##_1, name##_2, name##_3, name##_4
#define NAMES_7(name) NAMES_4(name), name##_5, name##_6, name##_7
#if FS_BYTES_PIXELS == 7
#define EACH UP_TO_7
#define NAMES NAMES_7
#else
#define EACH UP_TO_4
#define NAMES NAMES_4
#endif
enum { QUADS_16 = 4 * sizeof(code) }; /* of a block of 16 */
#define BOTH(name) {{0, NAMES(name##_any)}, {0, NAMES(name##_16)}}
#define SAME(name) {{0, NAMES(name)}, {0, NAMES(name)}}
EACH(MICRO, fp32_any, 0, FS_BYTES_FP32)
EACH(MICRO, fp32_16, QUADS_16, FS_BYTES_FP32)
EACH(MICRO, exact, 0, FS_BYTES_EXACT)
EACH(MICRO, careful_any, 0, FS_BYTES_CAREFUL)
EACH(MICRO, careful_16, QUADS_16, FS_BYTES_CAREFUL)
#ifdef FS_FMSUB_QUIET
EACH(MICRO_QUICK, narrow_any, 0, FS_BYTES_NARROW, careful_any)
EACH(MICRO_QUICK, narrow_16, QUADS_16, FS_BYTES_NARROW, careful_16)
EACH(MICRO_QUICK, deep_any, 0, FS_BYTES_DEEP, careful_any)
EACH(MICRO_QUICK, deep_16, QUADS_16, FS_BYTES_DEEP, careful_16)
#define NARROW BOTH(narrow)
#define DEEP BOTH(deep)
#else
#define NARROW BOTH(careful)
#define DEEP BOTH(careful)
#endif
#ifdef FS_BYTES_WORDS
EACH(MICRO, aligned_any, 0, FS_BYTES_ALIGNED)
EACH(MICRO, aligned_16, QUADS_16, FS_BYTES_ALIGNED)
#define ALIGNED BOTH(aligned)
#else
#define ALIGNED {{0}} /* only words are */
#endif
/* By mode, and block 16 or another. */
static micro_fn *const micros[FS_BYTES_MODES][2][PIXELS + 1] = {
    [FS_BYTES_FP32] = BOTH(fp32), [FS_BYTES_ALIGNED] = ALIGNED, [FS_BYTES_EXACT] = SAME(exact),
    [FS_BYTES_NARROW] = NARROW,   [FS_BYTES_DEEP] = DEEP,       [FS_BYTES_CAREFUL] = BOTH(careful),
};
FS_INLINE micro_fn *const *micros_of(int32_t mode, int64_t block) { return micros[mode][block == 16]; }
FS_INLINE void leave_tiles(void) {}
#include "bytes_layer_body.h"
