/* fs_depthwise for one variant. Values of fp16 and bf16 are kept in floats. */
#include "common.h"

/* x rounded once to fp16, ties to even; saturates at 65504. x is exact, or a float sum of two fp16 values. */
FS_INLINE float round_fp16(float x) {
  const uint32_t u = fs_bits(x), sign = u & 0x80000000u;
  const float magnitude = fs_float(u ^ sign);
  const int32_t v = (int32_t)(u ^ sign);
  const float normal = fs_float((uint32_t)(v + 0xfff + (v >> 13 & 1)) & 0xffffe000u);
  const float subnormal = (magnitude + 0.75f) - 0.75f; /* a multiple of 2^-24 */
  float y = magnitude < 6.103515625e-05f ? subnormal : normal;
  y = magnitude >= 65504.0f ? 65504.0f : y;
  y = magnitude != magnitude ? magnitude : y;
  return fs_float(fs_bits(y) | sign);
}

/* x rounded once to bf16, ties to even. */
FS_INLINE float round_bf16(float x) {
  const uint32_t u = fs_bits(x);
  return x != x ? x : fs_float((u + 0x7fffu + (u >> 16 & 1)) & 0xffff0000u);
}

/* The product of two values of the type, rounded once to it. */
FS_INLINE float multiply(const int pointwise, float a, float b) {
  const float p = a * b; /* exact for fp16 */
  if (pointwise == FS_FP16) return round_fp16(p);
  if (pointwise == FS_FP32) return p;
  /* A bf16 product is exact in float down to 2^-133; below 2^-126 it must be rounded to a multiple of that, once. */
  const double exact = fabs((double)a * (double)b), magic = 0x1.8p-81;
  const float tiny = (float)((exact + magic) - magic);
  return exact < 0x1p-126 ? fs_float(fs_bits(tiny) | (fs_bits(p) & 0x80000000u)) : round_bf16(p);
}

FS_INLINE float add(const int pointwise, float a, float b) {
  if (pointwise == FS_FP16) return round_fp16(a + b);
  return pointwise == FS_BF16 ? round_bf16(a + b) : a + b;
}

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

FS_INLINE void depthwise(const int pointwise, const fs_window *v, const float *x, const float *w, int64_t channels,
                         int64_t multiplier, int64_t first_pixel, int64_t last_pixel, float *result) {
  const int64_t outputs = channels * multiplier;
  for (int64_t p = first_pixel; p < last_pixel; p++) {
    const int64_t column = p % v->out_width, line = p / v->out_width;
    const int64_t row = line % v->out_height, image = line / v->out_height;
    float *to = result + p * outputs;
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
