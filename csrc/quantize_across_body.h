/* fs_quantize_across for one variant. Vectors go along the pixels, so that nothing is transposed but codes. */
#include "common.h"

/* Pixels and elements that are encoded at a time. */
enum { FS_ACROSS = 64, FS_DEEP = 16 };

/* How the blocks of a tensor are quantized, and the distance from a pixel to the next among codes and exponents. */
typedef struct {
  const fs_format *f;
  int64_t n, pixels;
  int32_t rounding, as_rows;
  uint64_t seed;
  int64_t code_step, exponent_step;
} fs_across;

/* What the blocks of FS_ACROSS pixels are encoded with. */
typedef struct {
  int32_t largest[FS_ACROSS], exponents[FS_ACROSS], slow[FS_ACROSS];
  float scales[FS_ACROSS];
  int32_t any_slow;
} fs_lanes;

/* From the largest magnitudes the shared exponents and the factors that make codes of elements. A block that quick
   encoding cannot take is `slow`: rounded otherwise, not finite, or with a factor that is no normal float. */
FS_INLINE void across_exponents(const fs_across *t, fs_lanes *l) {
  typedef int32_t v_blocks __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
  const fs_format *f = t->f;
  const int32_t top = f->element_exponent_bits ? 0 : f->mantissa_bits - 1, bias = 127 + f->element_emax;
  const v_blocks low = f->exponent_low + (v_blocks){0}, above = f->exponent_above + (v_blocks){0};
  v_blocks any_odd = {0}, any_slow = {0};
  for (int64_t p = 0; p < FS_ACROSS; p += FS_LANES) {
    const v_blocks largest = *(const v_blocks *)(l->largest + p), field = largest >> 23, zero = largest == 0;
    const v_blocks odd = ((field == 0) & ~zero) | (field == 255); /* subnormal or not finite */
    v_blocks s = field - (field == 0) - bias;
    const v_blocks too_high = s > f->exponent_high, too_low = s < low;
    s = (s & ~(too_high | too_low)) | (above & too_high) | (low & too_low);
    const v_blocks power = (top - s) & ~zero; /* zeros are zeros by any factor */
    const v_blocks slow = odd | (power < -126) | (power > 127) | -(t->rounding != FS_EVEN);
    any_odd |= odd;
    any_slow |= slow;
    *(v_blocks *)(l->exponents + p) = s;
    *(v_blocks *)(l->slow + p) = slow;
    *(v_blocks *)(l->scales + p) = ((power & ~slow) + 127) << 23;
  }
  int32_t odd = 0;
  l->any_slow = 0;
  for (int i = 0; i < FS_LANES; i++) {
    odd |= any_odd[i];
    l->any_slow |= any_slow[i];
  }
  if (odd)
    for (int64_t p = 0; p < FS_ACROSS; p++) l->exponents[p] = shared_exponent(f, l->largest[p]);
}

FS_INLINE void put_code(void *codes, const int64_t bytes, int64_t i, int32_t code) {
  if (bytes == 1) ((int8_t *)codes)[i] = (int8_t)code;
  else ((int16_t *)codes)[i] = (int16_t)code;
}

/* (FS_DEEP, FS_ACROSS) to (FS_ACROSS, FS_DEEP): four times the two halves shuffled together. */
FS_INLINE void transpose_tile(const int64_t bytes, void *tile) {
  enum { HALF = FS_ACROSS * FS_DEEP / 2 };
  int16_t other[2 * HALF], *from = tile, *to = other;
  for (int stage = 0; stage < 4; stage++) {
    for (int64_t i = 0; i < HALF; i++) {
      if (bytes == 1) {
        ((int8_t *)to)[2 * i] = ((int8_t *)from)[i];
        ((int8_t *)to)[2 * i + 1] = ((int8_t *)from)[i + HALF];
      } else {
        to[2 * i] = from[i];
        to[2 * i + 1] = from[i + HALF];
      }
    }
    int16_t *swapped = from;
    from = to;
    to = swapped;
  }
}

/* The `deep` elements from x on of FS_ACROSS pixels, at distances of `step`: where they are, or if there are fewer pixels
   copied to `tile`. */
FS_INLINE const float *across_elements(const fs_across *t, int64_t lanes, int64_t deep, const float *x, float *tile,
                                       int64_t *step) {
  *step = t->pixels;
  if (lanes == FS_ACROSS) return x;
  *step = FS_ACROSS;
  for (int64_t j = 0; j < deep; j++) memcpy(tile + j * FS_ACROSS, x + j * t->pixels, (size_t)lanes * sizeof *x);
  return tile;
}

FS_INLINE void encode_tile(const fs_across *t, const int64_t bytes, const fs_lanes *l, int64_t deep, const float *x,
                           int64_t step, void *codes) {
  if (t->f->element_exponent_bits > 0) {
    const fs_elements e = fs_elements_of(t->f);
    for (int64_t j = 0; j < deep; j++)
      for (int64_t p = 0; p < FS_ACROSS; p++)
        put_code(codes, bytes, j * FS_ACROSS + p, encode_float(&e, x[j * step + p] * l->scales[p]));
  } else {
    const float high = (float)t->f->max_code;
    for (int64_t j = 0; j < deep; j++)
      for (int64_t p = 0; p < FS_ACROSS; p++)
        put_code(codes, bytes, j * FS_ACROSS + p, encode_integer(x[j * step + p] * l->scales[p], high));
  }
}

/* The slow blocks of a tile, whose first element has position `index` in the tensor. */
static __attribute__((noinline)) void encode_tile_slowly(const fs_across *t, const fs_lanes *l, int64_t lanes,
                                                         int64_t deep, const float *x, uint64_t index, void *codes) {
  for (int64_t p = 0; p < lanes; p++) {
    for (int64_t j = 0; l->slow[p] && j < deep; j++) {
      const uint64_t at = index + (uint64_t)(p * t->n + j);
      const uint32_t draw = t->rounding == FS_STOCHASTIC ? random_bits(t->seed, at) : 0;
      const int32_t s = l->exponents[p];
      const int32_t code = s == FS_NAN_EXPONENT ? 0 : encode_any(t->f, x[j * t->pixels + p], s, t->rounding, draw);
      put_code(codes, t->f->code_bytes, j * FS_ACROSS + p, code);
    }
  }
}

/* One block, of `count` elements, of each of `lanes` pixels; `index` is the position of its first element, `elements`
   scratch of finite numbers for a tile. */
FS_INLINE void across_block(const fs_across *t, const int64_t bytes, int64_t lanes, const float *x, int64_t count,
                            uint64_t index, float *elements, char *codes, int16_t *exponents) {
  fs_lanes l;
  memset(l.largest, 0, sizeof l.largest);
  int64_t step;
  for (int64_t j = 0; j < count; j += FS_DEEP) {
    const int64_t deep = count - j < FS_DEEP ? count - j : FS_DEEP;
    const float *from = across_elements(t, lanes, deep, x + j * t->pixels, elements, &step);
    for (int64_t i = 0; i < deep; i++) {
      for (int64_t p = 0; p < FS_ACROSS; p++) {
        const int32_t u = (int32_t)(fs_bits(from[i * step + p]) & 0x7fffffffu);
        l.largest[p] = u > l.largest[p] ? u : l.largest[p];
      }
    }
  }
  across_exponents(t, &l);
  for (int64_t j = 0; j < count; j += FS_DEEP) {
    int16_t tile[FS_DEEP * FS_ACROSS];
    const int64_t deep = count - j < FS_DEEP ? count - j : FS_DEEP;
    const float *from = across_elements(t, lanes, deep, x + j * t->pixels, elements, &step);
    encode_tile(t, bytes, &l, deep, from, step, tile);
    if (l.any_slow) encode_tile_slowly(t, &l, lanes, deep, x + j * t->pixels, index + (uint64_t)j, tile);
    const char *made = (const char *)tile;
    if (t->as_rows) {
      transpose_tile(bytes, tile);
      for (int64_t p = 0; p < lanes; p++) {
        char *to = codes + (p * t->code_step + j) * bytes;
        if (deep == FS_DEEP) memcpy(to, made + p * FS_DEEP * bytes, (size_t)(FS_DEEP * bytes));
        else memcpy(to, made + p * FS_DEEP * bytes, (size_t)(deep * bytes));
      }
    } else {
      for (int64_t i = 0; i < deep; i++)
        memcpy(codes + (j + i) * t->pixels * bytes, made + i * FS_ACROSS * bytes, (size_t)(lanes * bytes));
    }
  }
  for (int64_t p = 0; p < lanes; p++) exponents[p * t->exponent_step] = (int16_t)l.exponents[p];
  const size_t padding = t->as_rows ? (size_t)((t->f->block - count) * bytes) : 0;
  if (padding > 0)
    for (int64_t p = 0; p < lanes; p++) memset(codes + (p * t->code_step + count) * bytes, 0, padding);
}

FS_INLINE void across_images(const fs_across *t, const int64_t bytes, const float *x, int64_t images, char *codes,
                             int16_t *exponents) {
  const int64_t block = t->f->block, blocks = (t->n + block - 1) / block, pixels = t->pixels;
  float elements[FS_DEEP * FS_ACROSS] = {0};
  const int64_t strips = (pixels + FS_ACROSS - 1) / FS_ACROSS;
  for (int64_t image = 0; image < images; image++) {
    for (int64_t i = 0; i < blocks * strips; i++) { /* in the order in which the results lie in memory */
      const int64_t b = t->as_rows ? i % blocks : i / strips, p = (t->as_rows ? i / blocks : i % strips) * FS_ACROSS;
      const int64_t lanes = pixels - p < FS_ACROSS ? pixels - p : FS_ACROSS, row = image * pixels + p;
      const int64_t first = b * block, count = t->n - first < block ? t->n - first : block;
      const int64_t at = (image * t->n + first) * pixels + p;
      char *to = codes + (t->as_rows ? row * t->code_step + first : at) * bytes;
      int16_t *e = exponents + (t->as_rows ? row * blocks + b : (image * blocks + b) * pixels + p);
      across_block(t, bytes, lanes, x + at, count, (uint64_t)(row * t->n + first), elements, to, e);
    }
  }
}

static __attribute__((noinline)) void quantize_across(const fs_across *t, const float *x, int64_t images, char *codes,
                                                      int16_t *exponents) {
  if (t->f->code_bytes == 1) across_images(t, 1, x, images, codes, exponents);
  else across_images(t, 2, x, images, codes, exponents);
}

void FS_FN(fs_quantize_across)(const fs_format *f, const float *x, int64_t images, int64_t n, int64_t pixels,
                               int32_t rounding, uint64_t seed, int32_t as_rows, void *codes, int16_t *exponents) {
  const int64_t blocks = (n + f->block - 1) / f->block;
  const fs_across t = {f, n, pixels, rounding, as_rows, seed, as_rows ? blocks * f->block : 1, as_rows ? blocks : 1};
  fs_fp_state state = fs_fp_enter();
  if (pixels == 1) quantize_rows(f, x, images, n, rounding, seed, as_rows, codes, exponents);
  else quantize_across(&t, x, images, codes, exponents);
  fs_fp_leave(state);
}
