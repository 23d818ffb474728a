/* fs_depthwise for one variant. */
#include "rounding.h"

/* One tap of one pixel for all outputs. */
FS_INLINE void depthwise_tap(const int pointwise, const int started, const float *x, const float *w, int64_t channels,
                             int64_t multiplier, float *result) {
  if (multiplier == 1) {
    for (int64_t o = 0; o < channels; o++) {
      const float p = multiply(pointwise, x[o], w[o]);
      result[o] = started ? add(pointwise, result[o], p) : p;
    }
    return;
  }
  for (int64_t o = 0; o < channels * multiplier; o++) {
    const float p = multiply(pointwise, x[o / multiplier], w[o]);
    result[o] = started ? add(pointwise, result[o], p) : p;
  }
}

/* Tiles of neighbours in a row of outputs, the columns of the input that their windows may span, and about how many
   numbers wait in the cache for the chain. */
enum { DEPTHWISE_PIXELS = 7, DEPTHWISE_REACH = 32, DEPTHWISE_TOGETHER = 4096 };

typedef struct {
  const fs_window *window;
  const float *x, *w;
  int64_t channels;
} depthwise_work;

/* The run of `lanes` channels after the one at c; the last one may overlap the one before and write the same again. */
FS_INLINE int64_t next_run(int64_t c, int64_t lanes, int64_t channels) {
  return c + lanes < channels && c + 2 * lanes > channels ? channels - lanes : c + lanes;
}

FS_INLINE v_values tile_round(const int pointwise, v_values x) {
  return pointwise == FS_FP16 ? round_fp16_values(x) : x;
}

#define FS_TILE_NAME tile_of_floats
#define FS_TILE_VALUES v_values
#define FS_TILE_BITS v_bits
#define FS_TILE_LANES FS_LANES
#define FS_TILE_LOAD(p) (*(const v_values *)(p))
#define FS_TILE_STORE(p, v) (*(v_values *)(p) = (v))
#define FS_TILE_ROUND(v) tile_round(pointwise, v)
#include "depthwise_tile_body.h"

/* A variant whose CPU computes in fp16 defines FS_LOAD_HALVES and FS_STORE_HALVES, which convert 2 * FS_LANES floats. */
#ifdef FS_LOAD_HALVES
typedef _Float16 v_halves __attribute__((vector_size(4 * FS_LANES)));
typedef int16_t v_half_bits __attribute__((vector_size(4 * FS_LANES)));
#define FS_TILE_NAME tile_of_halves
#define FS_TILE_VALUES v_halves
#define FS_TILE_BITS v_half_bits
#define FS_TILE_LANES (2 * FS_LANES)
#define FS_TILE_LOAD(p) ((v_halves)FS_LOAD_HALVES(p))
#define FS_TILE_STORE(p, v) FS_STORE_HALVES(p, v)
#define FS_TILE_ROUND(v) (v)
#include "depthwise_tile_body.h"
#endif

/* One pixel, tap by tap. */
FS_INLINE void depthwise_pixel(const int pointwise, const depthwise_work *o, int64_t multiplier, int64_t image,
                               int64_t row, int64_t column, float *to) {
  const fs_window *v = o->window;
  const int64_t outputs = o->channels * multiplier;
  int started = 0;
  for (int64_t kh = 0; kh < v->kernel_height; kh++) {
    const int64_t y = row * v->stride_height + kh * v->dilation_height - v->pad_top;
    if (y < 0 || y >= v->height) continue;
    for (int64_t kw = 0; kw < v->kernel_width; kw++) {
      const int64_t z = column * v->stride_width + kw * v->dilation_width - v->pad_left;
      if (z < 0 || z >= v->width) continue;
      const float *from = o->x + ((image * v->height + y) * v->width + z) * o->channels;
      const float *taps = o->w + (kh * v->kernel_width + kw) * outputs;
      if (started) depthwise_tap(pointwise, 1, from, taps, o->channels, multiplier, to);
      else depthwise_tap(pointwise, 0, from, taps, o->channels, multiplier, to);
      started = 1;
    }
  }
  if (!started) memset(to, 0, (size_t)outputs * sizeof *to);
}

/* Whether a window of `taps` from `start` on, `dilation` apart, sees anything of an image of `size`. */
FS_INLINE int sees(int64_t start, int64_t taps, int64_t dilation, int64_t size) {
  for (int64_t k = 0; k < taps; k++, start += dilation)
    if (start >= 0 && start < size) return 1;
  return 0;
}

/* px outputs; 0 where this does not do: a number may have to saturate, or is not finite. `*at_limit` becomes 1 where one
   of them may be 65504 in fp16. */
FS_INLINE int depthwise_tile(const int pointwise, const int px, const depthwise_work *o, int64_t image, int64_t row,
                             int64_t column, float *result, int *at_limit) {
  const fs_window *v = o->window;
  const int64_t left = column * v->stride_width - v->pad_left;
  const int64_t reach = (px - 1) * v->stride_width + (v->kernel_width - 1) * v->dilation_width + 1;
  const int pads = left < 0 || left + reach > v->width;
  if (reach > DEPTHWISE_REACH || o->channels < FS_LANES) return 0;
  /* What sees nothing is 0; a tile would make it -0. */
  if (!sees(row * v->stride_height - v->pad_top, v->kernel_height, v->dilation_height, v->height)) return 0;
  for (int64_t i = 0; pads && i < px; i++)
    if (!sees(left + i * v->stride_width, v->kernel_width, v->dilation_width, v->width)) return 0;
#ifdef FS_LOAD_HALVES
  if (pointwise == FS_FP16 && o->channels >= 2 * FS_LANES) {
    const int32_t most = pads ? tile_of_halves(pointwise, px, 1, o, image, row, column, result)
                              : tile_of_halves(pointwise, px, 0, o, image, row, column, result);
    *at_limit = most >= 0x7bff;
    return most < 0x7c00;
  }
#endif
  const int32_t most = pads ? tile_of_floats(pointwise, px, 1, o, image, row, column, result)
                            : tile_of_floats(pointwise, px, 0, o, image, row, column, result);
  *at_limit = most >= 0x477fe000; /* 65504 */
  return most < 0x7f800000; /* not finite: maybe by a weight that is not, times the 0 of a position outside */
}

/* How many of n numbers lie at the limit of fp16. */
static __attribute__((noinline)) int64_t count_at_limit(const float *v, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) count += fabsf(v[i]) == 65504.0f;
  return count;
}

FS_INLINE int64_t depthwise(const int pointwise, const fs_window *v, const float *x, const float *w, int64_t channels,
                            int64_t multiplier, const fs_chain *chain, int64_t first_pixel, int64_t last_pixel,
                            float *scratch, float *result) {
  const depthwise_work work = {v, x, w, channels};
  const int64_t outputs = channels * multiplier;
  int64_t saturated = 0, begin = first_pixel;
  if (chain) repeat_operands(chain->stages, chain->count, outputs, scratch);
  for (int64_t p = first_pixel, px; p < last_pixel; p += px) {
    const int64_t column = p % v->out_width, line = p / v->out_width;
    const int64_t row = line % v->out_height, image = line / v->out_height;
    const int64_t left = v->out_width - column < last_pixel - p ? v->out_width - column : last_pixel - p;
    float *to = result + p * outputs;
    int at_limit = 1;
    px = left >= DEPTHWISE_PIXELS ? DEPTHWISE_PIXELS : left >= 4 ? 4 : 1;
    if (multiplier != 1 || pointwise == FS_BF16 || /* its products take another road */
        !(px == 1   ? depthwise_tile(pointwise, 1, &work, image, row, column, to, &at_limit)
          : px == 4 ? depthwise_tile(pointwise, 4, &work, image, row, column, to, &at_limit)
                    : depthwise_tile(pointwise, DEPTHWISE_PIXELS, &work, image, row, column, to, &at_limit)))
      for (int64_t i = 0; i < px; i++)
        depthwise_pixel(pointwise, &work, multiplier, image, row, column + i, to + i * outputs);
    if (pointwise == FS_FP16 && at_limit) saturated += count_at_limit(to, px * outputs);
    if (!chain || ((p + px - begin) * outputs < DEPTHWISE_TOGETHER && p + px < last_pixel)) continue;
    float *values = result + begin * outputs;
    saturated += run_stages(chain->stages, chain->count, chain->pointwise, 0, values, outputs, begin, p + px, scratch,
                            chain->rounded, values);
    begin = p + px;
  }
  return saturated;
}

static __attribute__((noinline)) int64_t depthwise_pixels(const fs_window *v, const float *x, const float *w,
                                                          int64_t channels, int64_t multiplier, int32_t pointwise,
                                                          const fs_chain *chain, int64_t first, int64_t last,
                                                          float *scratch, float *result) {
  if (pointwise == FS_FP16)
    return depthwise(FS_FP16, v, x, w, channels, multiplier, chain, first, last, scratch, result);
  if (pointwise == FS_BF16)
    return depthwise(FS_BF16, v, x, w, channels, multiplier, chain, first, last, scratch, result);
  return depthwise(FS_FP32, v, x, w, channels, multiplier, chain, first, last, scratch, result);
}

int64_t FS_FN(fs_depthwise)(const fs_window *window, const float *x, const float *w, int64_t channels,
                            int64_t multiplier, int32_t pointwise, const fs_chain *chain, int64_t first_pixel,
                            int64_t last_pixel, float *scratch, float *result) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = depthwise_pixels(window, x, w, channels, multiplier, pointwise, chain, first_pixel,
                                             last_pixel, scratch, result);
  fs_fp_leave(state);
  return saturated;
}
