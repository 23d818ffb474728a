/* The byte convolution with AMX: tiles of up to 14 pixels times 32 outputs.

   Operands are bfloat16, mantissas of a block times its scale. Products and their sums within a block are exact in
   float32 under the conditions of fs_bytes_fit, whatever the order, so the CPU's tile of sums holds finished terms; one
   addition per term is left for the vector unit. */
#include <immintrin.h>

#include "../bytes_tile.h"

enum { PANEL = 32, PIXELS = 14, ROWS = 16 };

/* The CPU's tiles: terms of the low and of the high 16 outputs, weights of both, activations. Their numbers become part
   of an instruction's name, which an enum would not. */
#define LOW 0
#define HIGH 1
#define LOW_WEIGHTS 2
#define HIGH_WEIGHTS 3
#define ACTIVATIONS 4

typedef float terms_of_16[ROWS][16] __attribute__((aligned(64)));

static __attribute__((noinline)) void set_up_tiles(tile_work *o, int pixels) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1};
  const int weight_rows = (int)o->step / 2;
  for (int i = LOW; i <= ACTIVATIONS; i++) {
    const int is_weights = i == LOW_WEIGHTS || i == HIGH_WEIGHTS;
    config.rows[i] = (uint8_t)(is_weights ? weight_rows : pixels);
    config.row_bytes[i] = (uint16_t)(i == ACTIVATIONS ? 4 * weight_rows : 64);
  }
  __asm__ volatile("" : : "m"(config)); /* GCC 12 takes the next line to read no more than a pointer's size of it */
  _tile_loadconfig(&config);
  o->pixels = pixels;
}

FS_INLINE void leave_tiles(void) { _tile_release(); }

/* The products of one term, for the 16 outputs whose weights begin at w, or for two times 16. What the CPU's tiles held
   goes to `last` first, if that is not NULL: a turn late, so that sums of products have the time of another term to
   finish. Returns where the next term's weights are. */
FS_INLINE const uint8_t *multiply_term(const tile_work *o, const int both, const uint16_t *a, const fs_term *term,
                                  const uint8_t *w, terms_of_16 *last) {
  const int64_t turn = 2 * PANEL * o->step;
  a += term->code;
  _tile_loadd(ACTIVATIONS, a, 2 * o->a_pixel);
  _tile_loadd(LOW_WEIGHTS, w, 4 * PANEL);
  if (last) _tile_stored(LOW, last[0], 64);
  _tile_zero(LOW);
  _tile_dpbf16ps(LOW, ACTIVATIONS, LOW_WEIGHTS);
  if (both) {
    _tile_loadd(HIGH_WEIGHTS, w + 64, 4 * PANEL);
    if (last) _tile_stored(HIGH, last[1], 64);
    _tile_zero(HIGH);
    _tile_dpbf16ps(HIGH, ACTIVATIONS, HIGH_WEIGHTS);
  }
  w += turn;
  for (int64_t j = o->step; j < term->size; j += o->step, w += turn) {
    _tile_loadd(ACTIVATIONS, a + j, 2 * o->a_pixel);
    _tile_loadd(LOW_WEIGHTS, w, 4 * PANEL);
    _tile_dpbf16ps(LOW, ACTIVATIONS, LOW_WEIGHTS);
    if (!both) continue;
    _tile_loadd(HIGH_WEIGHTS, w + 64, 4 * PANEL);
    _tile_dpbf16ps(HIGH, ACTIVATIONS, HIGH_WEIGHTS);
  }
  return w;
}

/* Sums for `most` pixels, the first px of which are wanted: 32 outputs; exact ones 16, the high ones if `half` is 1. */
FS_INLINE void micro(const int most, const int px, const int exact, const int half, const tile_work *o,
                     const uint16_t *a, float *out) {
  terms_of_16 t[2];
  __m512 c[PIXELS][2];
  __m512d sum[PIXELS][2];
#pragma GCC unroll 14
  for (int i = 0; i < most; i++)
    if (exact) sum[i][0] = sum[i][1] = _mm512_setzero_pd();
    else c[i][0] = c[i][1] = _mm512_setzero_ps();
#define FOLD                                                                                            \
  _Pragma("GCC unroll 14") for (int i = 0; i < most; i++) _Pragma("GCC unroll 2") for (int j = 0; j < 2; j++) { \
    if (exact) sum[i][j] = _mm512_add_pd(sum[i][j], _mm512_cvtps_pd(_mm256_load_ps(t[0][i] + 8 * j)));  \
    else c[i][j] = _mm512_add_ps(c[i][j], _mm512_load_ps(t[j][i]));                                     \
  }
  const uint8_t *w = multiply_term(o, !exact, a, o->terms, o->w + 64 * half, NULL);
  for (int64_t k = 1; k < o->num_terms; k++) {
    w = multiply_term(o, !exact, a, o->terms + k, w, t);
    FOLD
  }
  _tile_stored(LOW, t[0], 64);
  if (!exact) _tile_stored(HIGH, t[1], 64);
  FOLD
#undef FOLD
#pragma GCC unroll 14
  for (int i = 0; i < most; i++) {
    float *to = out + i * o->out_pixel + 16 * half;
    __m512 both[2];
    if (exact) {
      const __m512 low = _mm512_castps256_ps512(_mm512_cvtpd_ps(sum[i][0]));
      both[0] = _mm512_insertf32x8(low, _mm512_cvtpd_ps(sum[i][1]), 1);
    } else {
      both[0] = c[i][0], both[1] = c[i][1];
    }
    const int64_t outs = o->outs - 16 * half, size = exact ? 16 : PANEL;
    if (i >= px) continue;
    if (outs >= size) {
      _mm512_storeu_ps(to, both[0]);
      if (!exact) _mm512_storeu_ps(to + 16, both[1]);
    } else if (outs > 0) {
      memcpy(to, both, (size_t)outs * sizeof *to);
    }
  }
}

#define MICRO(name, most, exact)                                                                                         \
  static __attribute__((noinline)) void name##_##most(tile_work *o, int px, const void *codes, const float *s, float *r) { \
    (void)s;                                                                                                             \
    if (o->pixels != px) set_up_tiles(o, px);                                                                            \
    micro(most, px, exact, 0, o, codes, r);                                                                              \
    if (exact && o->outs > 16) micro(most, px, exact, 1, o, codes, r);                                                   \
  }
MICRO(fp32, 7, 0)
MICRO(fp32, 14, 0)
MICRO(exact, 7, 1)
MICRO(exact, 14, 1)
#define SEVEN(f) f, f, f, f, f, f, f
static micro_fn *const micros[2][PIXELS + 1] = {
    {0, SEVEN(fp32_7), SEVEN(fp32_14)},
    {0, SEVEN(exact_7), SEVEN(exact_14)},
};
FS_INLINE micro_fn *const *micros_of(int32_t mode, int64_t block) {
  (void)block;
  return micros[mode == FS_BYTES_EXACT];
}
typedef uint16_t code;
#include "../bytes_layer_body.h"
