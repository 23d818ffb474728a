/* Windows over an image of floats. */
#ifndef FS_UNFOLD_BODY_H
#define FS_UNFOLD_BODY_H
#include "common.h"

/* Where the window of output pixel p begins, and its image. */
typedef struct {
  int64_t image, row, column;
} corner;

FS_INLINE corner window_corner(const fs_window *v, int64_t p) {
  const int64_t line = p / v->out_width;
  return (corner){line / v->out_height, line % v->out_height * v->stride_height - v->pad_top,
                  p % v->out_width * v->stride_width - v->pad_left};
}

/* The pixel under tap (kh, kw), or NULL outside the image. */
FS_INLINE const float *tap_pixel(const fs_window *v, corner at, const float *x, int64_t channels, int64_t kh,
                                 int64_t kw) {
  const int64_t y = at.row + kh * v->dilation_height, z = at.column + kw * v->dilation_width;
  if (y < 0 || y >= v->height || z < 0 || z >= v->width) return NULL;
  return x + ((at.image * v->height + y) * v->width + z) * channels;
}

/* fs_unfold, except that `result` takes the first pixel. */
static __attribute__((noinline)) void unfold(const fs_window *v, const float *x, int64_t channels, int64_t row,
                                             int64_t first_pixel, int64_t last_pixel, float *result) {
  const int64_t taps = v->kernel_width, padding = row - v->kernel_height * taps * channels;
  for (int64_t p = first_pixel; p < last_pixel; p++) {
    const corner at = window_corner(v, p);
    /* Taps first <= kw < end lie inside the image, and next to each other if the dilation is 1. */
    int64_t first = 0, end = taps;
    while (first < taps && at.column + first * v->dilation_width < 0) first++;
    while (end > first && at.column + (end - 1) * v->dilation_width >= v->width) end--;
    for (int64_t kh = 0; kh < v->kernel_height; kh++, result += taps * channels) {
      const float *from = first < end ? tap_pixel(v, at, x, channels, kh, first) : NULL;
      if (!from) {
        memset(result, 0, (size_t)(taps * channels) * sizeof *result);
        continue;
      }
      if (first > 0) memset(result, 0, (size_t)(first * channels) * sizeof *result);
      if (end < taps) memset(result + end * channels, 0, (size_t)((taps - end) * channels) * sizeof *result);
      const int64_t run = v->dilation_width == 1 ? end - first : 1;
      for (int64_t kw = first; kw < end; kw += run, from += v->dilation_width * channels)
        memcpy(result + kw * channels, from, (size_t)(run * channels) * sizeof *result);
    }
    for (int64_t i = 0; i < padding; i++) *result++ = 0.0f;
  }
}
#endif
