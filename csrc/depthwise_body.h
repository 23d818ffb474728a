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

/* A pixel of multiplier 1, a run of channels at a time; 0 where a number may have to saturate, which this does not do. */
FS_INLINE int depthwise_pixel(const int pointwise, const fs_window *v, const float *x, const float *w, int64_t channels,
                              int64_t image, int64_t row, int64_t column, float *result) {
  enum { RUN = 64 };
  const int64_t top = row * v->stride_height - v->pad_top, left = column * v->stride_width - v->pad_left;
  int32_t high[RUN] = {0}, highest = 0;
  int started = 0;
  if (pointwise == FS_BF16) return 0; /* its products take another road */
  for (int64_t c = 0; c < channels; c += RUN) {
    const int64_t n = channels - c < RUN ? channels - c : RUN;
    float sum[RUN];
    for (int64_t i = 0; i < n; i++) sum[i] = -0.0f; /* the first sum is the first product, also if that is -0 */
    for (int64_t kh = 0; kh < v->kernel_height; kh++) {
      const int64_t y = top + kh * v->dilation_height;
      if (y < 0 || y >= v->height) continue;
      for (int64_t kw = 0; kw < v->kernel_width; kw++) {
        const int64_t z = left + kw * v->dilation_width;
        if (z < 0 || z >= v->width) continue;
        const float *from = x + ((image * v->height + y) * v->width + z) * channels + c;
        const float *taps = w + (kh * v->kernel_width + kw) * channels + c;
        started = 1;
        for (int64_t i = 0; i < n; i++) {
          const float product = round_beyond(pointwise, from[i] * taps[i], &high[i]);
          sum[i] = round_beyond(pointwise, sum[i] + product, &high[i]);
        }
      }
    }
    memcpy(result + c, sum, (size_t)n * sizeof *sum);
  }
  for (int i = 0; i < RUN; i++) highest = high[i] > highest ? high[i] : highest;
  return started && highest < FS_FP16_HIGH;
}

FS_INLINE void depthwise(const int pointwise, const fs_window *v, const float *x, const float *w, int64_t channels,
                         int64_t multiplier, int64_t first_pixel, int64_t last_pixel, float *result) {
  const int64_t outputs = channels * multiplier;
  for (int64_t p = first_pixel; p < last_pixel; p++) {
    const int64_t column = p % v->out_width, line = p / v->out_width;
    const int64_t row = line % v->out_height, image = line / v->out_height;
    float *to = result + p * outputs;
    if (multiplier == 1 && depthwise_pixel(pointwise, v, x, w, channels, image, row, column, to)) continue;
    int started = 0;
    for (int64_t kh = 0; kh < v->kernel_height; kh++) {
      const int64_t y = row * v->stride_height + kh * v->dilation_height - v->pad_top;
      if (y < 0 || y >= v->height) continue;
      for (int64_t kw = 0; kw < v->kernel_width; kw++) {
        const int64_t z = column * v->stride_width + kw * v->dilation_width - v->pad_left;
        if (z < 0 || z >= v->width) continue;
        const float *from = x + ((image * v->height + y) * v->width + z) * channels;
        const float *taps = w + (kh * v->kernel_width + kw) * outputs;
        if (started) depthwise_tap(pointwise, 1, from, taps, channels, multiplier, to);
        else depthwise_tap(pointwise, 0, from, taps, channels, multiplier, to);
        started = 1;
      }
    }
    if (!started) memset(to, 0, (size_t)outputs * sizeof *to);
  }
}

static __attribute__((noinline)) void depthwise_pixels(const fs_window *v, const float *x, const float *w,
                                                       int64_t channels, int64_t multiplier, int32_t pointwise,
                                                       int64_t first, int64_t last, float *result) {
  if (pointwise == FS_FP16) depthwise(FS_FP16, v, x, w, channels, multiplier, first, last, result);
  else if (pointwise == FS_BF16) depthwise(FS_BF16, v, x, w, channels, multiplier, first, last, result);
  else depthwise(FS_FP32, v, x, w, channels, multiplier, first, last, result);
}

void FS_FN(fs_depthwise)(const fs_window *window, const float *x, const float *w, int64_t channels, int64_t multiplier,
                         int32_t pointwise, int64_t first_pixel, int64_t last_pixel, float *result) {
  fs_fp_state state = fs_fp_enter();
  depthwise_pixels(window, x, w, channels, multiplier, pointwise, first_pixel, last_pixel, result);
  fs_fp_leave(state);
}
