/* fs_max_pool, fs_average_pool, fs_unfold, fs_enter and fs_leave for one variant. */
#include "rounding.h"
#include "unfold_body.h"

static __attribute__((noinline)) void max_pool(const fs_window *v, const float *x, int64_t channels, int64_t first,
                                               int64_t last, float *result) {
  for (int64_t p = first; p < last; p++) {
    const corner at = window_corner(v, p);
    float *to = result + p * channels;
    for (int64_t c = 0; c < channels; c++) to[c] = -INFINITY;
    for (int64_t kh = 0; kh < v->kernel_height; kh++)
      for (int64_t kw = 0; kw < v->kernel_width; kw++) {
        const float *from = tap_pixel(v, at, x, channels, kh, kw);
        if (!from) continue;
        for (int64_t c = 0; c < channels; c++) to[c] = from[c] > to[c] || from[c] != from[c] ? from[c] : to[c];
      }
    for (int64_t c = 0; c < channels; c++) to[c] += 0.0f; /* a zero is +0 */
  }
}

void FS_FN(fs_max_pool)(const fs_window *window, const float *x, int64_t channels, int64_t first_pixel,
                        int64_t last_pixel, float *result) {
  fs_fp_state state = fs_fp_enter();
  max_pool(window, x, channels, first_pixel, last_pixel, result);
  fs_fp_leave(state);
}

FS_INLINE void average_pool(const int pointwise, const fs_window *v, const float *x, int64_t channels,
                            int32_t count_padding, const float *weights, int64_t first, int64_t last, float *result) {
  for (int64_t p = first; p < last; p++) {
    const corner at = window_corner(v, p);
    float *to = result + p * channels;
    int64_t count = 0;
    memset(to, 0, (size_t)channels * sizeof *to);
    for (int64_t kh = 0; kh < v->kernel_height; kh++)
      for (int64_t kw = 0; kw < v->kernel_width; kw++) {
        const float *from = tap_pixel(v, at, x, channels, kh, kw);
        count += from || count_padding;
        if (!from) continue;
        for (int64_t c = 0; c < channels; c++) to[c] = add(pointwise, to[c], from[c]);
      }
    const float weight = weights[count > 0 ? count : 1];
    for (int64_t c = 0; c < channels; c++) to[c] = multiply(pointwise, to[c], weight);
  }
}

static __attribute__((noinline)) void average_pixels(const fs_window *v, const float *x, int64_t channels,
                                                     int32_t pointwise, int32_t count_padding, const float *weights,
                                                     int64_t first, int64_t last, float *result) {
  if (pointwise == FS_FP16) average_pool(FS_FP16, v, x, channels, count_padding, weights, first, last, result);
  else if (pointwise == FS_BF16) average_pool(FS_BF16, v, x, channels, count_padding, weights, first, last, result);
  else average_pool(FS_FP32, v, x, channels, count_padding, weights, first, last, result);
}

void FS_FN(fs_average_pool)(const fs_window *window, const float *x, int64_t channels, int32_t pointwise,
                            int32_t count_padding, const float *weights, int64_t first_pixel, int64_t last_pixel,
                            float *result) {
  fs_fp_state state = fs_fp_enter();
  average_pixels(window, x, channels, pointwise, count_padding, weights, first_pixel, last_pixel, result);
  fs_fp_leave(state);
}

void FS_FN(fs_unfold)(const fs_window *window, const float *x, int64_t channels, int64_t row, int64_t first_pixel,
                      int64_t last_pixel, float *result) {
  unfold(window, x, channels, row, first_pixel, last_pixel, result + first_pixel * row);
}

enum { FS_STRIP = 64 }; /* pixels that are transposed at a time */

FS_INLINE int64_t enter(const int pointwise, const float *x, int64_t channels, int64_t pixels, int64_t first,
                        int64_t last, float *result) {
  int64_t saturated = 0;
  for (int64_t p = first, n; p < last; p += n) {
    const int64_t pixel = p % pixels;
    n = pixels - pixel < FS_STRIP ? pixels - pixel : FS_STRIP;
    n = last - p < n ? last - p : n;
    for (int64_t c = 0; c < channels; c++) {
      const float *from = x + (p / pixels * channels + c) * pixels + pixel;
      float rounded[FS_STRIP];
      int32_t high = 0;
      for (int64_t i = 0; i < n; i++) rounded[i] = round_beyond(pointwise, from[i], &high);
      saturated += saturate(high, n, rounded);
      for (int64_t i = 0; i < n; i++) result[(p + i) * channels + c] = rounded[i];
    }
  }
  return saturated;
}

static __attribute__((noinline)) int64_t enter_pixels(const float *x, int64_t channels, int64_t pixels,
                                                      int32_t pointwise, int64_t first, int64_t last, float *result) {
  if (pointwise == FS_FP16) return enter(FS_FP16, x, channels, pixels, first, last, result);
  if (pointwise == FS_BF16) return enter(FS_BF16, x, channels, pixels, first, last, result);
  return enter(FS_FP32, x, channels, pixels, first, last, result);
}

int64_t FS_FN(fs_enter)(const float *x, int64_t channels, int64_t pixels, int32_t pointwise, int64_t first_pixel,
                        int64_t last_pixel, float *result) {
  fs_fp_state state = fs_fp_enter();
  const int64_t saturated = enter_pixels(x, channels, pixels, pointwise, first_pixel, last_pixel, result);
  fs_fp_leave(state);
  return saturated;
}

void FS_FN(fs_leave)(const float *x, int64_t channels, int64_t pixels, int64_t first_pixel, int64_t last_pixel,
                     float *result) {
  for (int64_t p = first_pixel, n; p < last_pixel; p += n) {
    const int64_t pixel = p % pixels;
    n = pixels - pixel < FS_STRIP ? pixels - pixel : FS_STRIP;
    n = last_pixel - p < n ? last_pixel - p : n;
    for (int64_t c = 0; c < channels; c++)
      for (int64_t i = 0; i < n; i++)
        result[(p / pixels * channels + c) * pixels + pixel + i] = x[(p + i) * channels + c];
  }
}
