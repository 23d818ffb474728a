/* fs_stages for one variant: a chain of pointwise stages on a piece of the tensor while it is in the first-level cache. */
#include "rounding.h"

/* The code of a value of the type; sigmoid and tanh are tables over codes. */
FS_INLINE uint32_t code_of(const int pointwise, float x) {
  const uint32_t u = fs_bits(x), sign = u >> 31 << 15, magnitude = u & 0x7fffffffu;
  if (pointwise == FS_BF16) return u >> 16;
  if (x != x) return 0x7e00u;
  if (magnitude > 0x477fe000u) return sign | 0x7c00u;
  return sign | (magnitude < 0x38800000u ? (uint32_t)(fs_float(magnitude) * 0x1p24f) : (magnitude - 0x38000000u) >> 13);
}

/* v = a + b, or a where b is NULL, rounded as by round_beyond. A variant whose CPU converts to fp16 and back defines
   FS_ROUND_FP16 of a vector, with infinity for what lies beyond, and FS_LARGER, the maxima of two vectors of int32. */
FS_INLINE void round_sums(const int pointwise, int64_t n, const float *a, const float *b, float *v, int32_t *high) {
  int64_t i = 0;
#ifdef FS_ROUND_FP16
  typedef float v_values __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
  typedef int32_t v_bits __attribute__((vector_size(4 * FS_LANES), aligned(4), may_alias));
  v_bits largest = {0};
  for (; pointwise == FS_FP16 && i + FS_LANES <= n; i += FS_LANES) {
    v_values x = *(const v_values *)(a + i);
    if (b) x += *(const v_values *)(b + i);
    largest = (v_bits)FS_LARGER(largest, (v_bits)x & 0x7fffffff);
    *(v_values *)(v + i) = (v_values)FS_ROUND_FP16(x);
  }
  for (int j = 0; j < FS_LANES; j++) *high = largest[j] > *high ? largest[j] : *high;
#endif
  for (; i < n; i++) v[i] = round_beyond(pointwise, b ? a[i] + b[i] : a[i], high);
}

/* One stage on n elements of v; returns how many saturated. */
FS_INLINE int64_t run_stage(const int pointwise, const fs_stage *s, const float *o, int64_t n, float *v) {
  int32_t high = 0;
  switch (s->kind) {
    case FS_STAGE_ADD:
      round_sums(pointwise, n, v, o, v, &high);
      break;
    case FS_STAGE_SUB:
      for (int64_t i = 0; i < n; i++) v[i] = round_beyond(pointwise, v[i] - o[i], &high);
      break;
    case FS_STAGE_SUB_FROM:
      for (int64_t i = 0; i < n; i++) v[i] = round_beyond(pointwise, o[i] - v[i], &high);
      break;
    case FS_STAGE_MUL:
      if (pointwise == FS_BF16)
        for (int64_t i = 0; i < n; i++) v[i] = multiply_bf16(v[i], o[i]);
      else
        for (int64_t i = 0; i < n; i++) v[i] = round_beyond(pointwise, v[i] * o[i], &high);
      break;
    case FS_STAGE_MAX: /* a NaN wins, a zero is +0 */
      for (int64_t i = 0; i < n; i++) v[i] = (v[i] > o[i] || v[i] != v[i] ? v[i] : o[i]) + 0.0f;
      break;
    case FS_STAGE_CLIP:
      for (int64_t i = 0; i < n; i++) {
        const float x = v[i] < s->low ? s->low : v[i];
        v[i] = (x > s->high ? s->high : x) + 0.0f;
      }
      break;
    default:
      for (int64_t i = 0; i < n; i++) v[i] = s->operand[code_of(pointwise, v[i])];
  }
  return saturate(high, n, v);
}

FS_INLINE int64_t stages(const int pointwise, const fs_stage *chain, int64_t count, int32_t unrounded,
                        const float *source, int64_t channels, int64_t first, int64_t last, float *scratch,
                        float *rounded, float *result) {
  const int wide = channels > FS_PIECE;
  const int64_t whole = wide ? FS_PIECE : FS_PIECE / channels * channels;
  int64_t saturated = 0;
  for (int64_t k = 0; k < count; k++) { /* operands of channels repeated over a piece */
    float *tile = scratch + k * FS_PIECE;
    if (chain[k].kind >= FS_STAGE_CLIP || chain[k].span == FS_ELEMENTS) continue;
    if (chain[k].span == FS_ONE)
      for (int64_t i = 0; i < whole; i++) tile[i] = chain[k].operand[0];
    else if (!wide)
      for (int64_t i = 0; i < whole; i += channels)
        memcpy(tile + i, chain[k].operand, (size_t)channels * sizeof *tile);
  }
  for (int64_t at = first * channels, n; at < last * channels; at += n) {
    n = wide && channels - at % channels < whole ? channels - at % channels : whole;
    if (n > last * channels - at) n = last * channels - at;
    float *v = result + at;
    if (unrounded) {
      int32_t high = 0;
      round_sums(pointwise, n, source + at, NULL, v, &high);
      saturated += saturate(high, n, v);
    } else if (source != result) {
      memcpy(v, source + at, (size_t)n * sizeof *v);
    }
    if (rounded && rounded != result) memcpy(rounded + at, v, (size_t)n * sizeof *v);
    for (int64_t k = 0; k < count; k++) {
      const fs_stage *s = chain + k;
      const float *o = scratch + k * FS_PIECE;
      if (s->span == FS_ELEMENTS) o = s->operand + at;
      else if (s->span == FS_CHANNELS && wide) o = s->operand + at % channels;
      saturated += run_stage(pointwise, s, o, n, v);
      if (s->result && s->result != result) memcpy(s->result + at, v, (size_t)n * sizeof *v);
    }
  }
  return saturated;
}

static __attribute__((noinline)) int64_t stages_of_type(const fs_stage *chain, int64_t count, int32_t pointwise,
                                                      int32_t unrounded, const float *source, int64_t channels,
                                                      int64_t first, int64_t last, float *scratch, float *rounded,
                                                      float *result) {
  if (pointwise == FS_FP16)
    return stages(FS_FP16, chain, count, unrounded, source, channels, first, last, scratch, rounded, result);
  if (pointwise == FS_BF16)
    return stages(FS_BF16, chain, count, unrounded, source, channels, first, last, scratch, rounded, result);
  return stages(FS_FP32, chain, count, unrounded, source, channels, first, last, scratch, rounded, result);
}

int64_t FS_FN(fs_stages)(const fs_stage *chain, int64_t count, int32_t pointwise, int32_t unrounded, const float *source,
                        int64_t channels, int64_t first_pixel, int64_t last_pixel, float *scratch, float *rounded,
                        float *result) {
  fs_fp_state state = fs_fp_enter();
  int64_t saturated = stages_of_type(chain, count, pointwise, unrounded, source, channels, first_pixel, last_pixel,
                                   scratch, rounded, result);
  fs_fp_leave(state);
  return saturated;
}
