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

/* One stage on n elements of v; returns how many saturated. */
FS_INLINE int64_t run_stage(const int pointwise, const fs_stage *s, const float *o, int64_t n, float *v) {
  int32_t high = 0;
  switch (s->kind) {
    case FS_STAGE_ADD:
      for (int64_t i = 0; i < n; i++) v[i] = round_beyond(pointwise, v[i] + o[i], &high);
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

/* Where stage k finds its operands for n elements from `at` on; see repeat_operands. */
FS_INLINE const float *operands(const fs_stage *s, int64_t channels, int64_t at, const float *tile) {
  if (s->span == FS_ELEMENTS) return s->operand + at;
  return s->span == FS_CHANNELS && channels > FS_PIECE ? s->operand + at % channels : tile;
}

/* n elements at `source`, which are those from `at` on, through the chain into v, one stage after the other; operands
   are i elements further on. Returns how many saturated. */
static __attribute__((noinline)) int64_t stage_by_stage(const int32_t pointwise, const fs_stage *chain, int64_t count,
                                                        int32_t unrounded, const float *source,
                                                        const float *const *operand, int64_t at, int64_t i, int64_t n,
                                                        float *rounded, float *v) {
  int64_t saturated = 0;
  if (source != v) memcpy(v, source, (size_t)n * sizeof *v);
  if (unrounded) {
    int32_t high = 0;
    for (int64_t j = 0; j < n; j++) v[j] = round_beyond(pointwise, v[j], &high);
    saturated += saturate(high, n, v);
  }
  if (rounded && rounded + at != v) memcpy(rounded + at, v, (size_t)n * sizeof *v);
  for (int64_t k = 0; k < count; k++) {
    saturated += pointwise == FS_FP16   ? run_stage(FS_FP16, chain + k, operand[k] + i, n, v)
                 : pointwise == FS_BF16 ? run_stage(FS_BF16, chain + k, operand[k] + i, n, v)
                                        : run_stage(FS_FP32, chain + k, operand[k] + i, n, v);
    if (chain[k].result && chain[k].result + at != v) memcpy(chain[k].result + at, v, (size_t)n * sizeof *v);
  }
  return saturated;
}

#ifdef FS_ROUND_FP16
enum { FS_RUN = 4 * FS_LANES };

/* As stage_by_stage for FS_RUN elements of fp16, in registers from the first stage to the last. Returns 0, and has only
   written what will be written again, where a number may have to saturate or a stage is none of these. */
FS_INLINE int stages_in_registers(const fs_stage *chain, int64_t count, int32_t unrounded, const float *source,
                                  const float *const *operand, int64_t at, int64_t i, float *rounded, float *result) {
  v_values v[4];
  v_bits largest = {0};
#define EACH for (int j = 0; j < 4; j++)
#define ROUNDED(x) EACH v[j] = round_fp16_values(x)
#define SEEN EACH largest = (v_bits)FS_LARGER(largest, (v_bits)v[j] & 0x7fffffff)
#define STORE(to) EACH *(v_values *)((to) + j * FS_LANES) = v[j]
#define O (*(const v_values *)(operand[k] + i + j * FS_LANES))
  EACH v[j] = *(const v_values *)(source + j * FS_LANES);
  if (unrounded) ROUNDED(v[j]);
  if (rounded && rounded + at != result) STORE(rounded + at);
  for (int64_t k = 0; k < count; k++) {
    const fs_stage *s = chain + k;
    switch (s->kind) {
      case FS_STAGE_ADD: ROUNDED(v[j] + O); break;
      case FS_STAGE_SUB: ROUNDED(v[j] - O); break;
      case FS_STAGE_SUB_FROM: ROUNDED(O - v[j]); break;
      case FS_STAGE_MUL: ROUNDED(v[j] * O); break;
      case FS_STAGE_CLIP: /* hides what lies beyond */
        SEEN;
        EACH v[j] = FS_WITHIN(v[j], s->low, s->high) + 0.0f;
        break;
      default: return 0;
    }
    if (s->result && s->result + at != result) STORE(s->result + at);
  }
  SEEN;
  for (int j = 0; j < FS_LANES; j++)
    if (largest[j] > 0x477fe000) return 0; /* 65504 */
  STORE(result);
  return 1;
#undef EACH
#undef ROUNDED
#undef SEEN
#undef STORE
#undef O
}
#endif

/* Operands of channels and single ones as often as a piece of whole pixels has room for them, in `scratch`. */
FS_INLINE void repeat_operands(const fs_stage *chain, int64_t count, int64_t channels, float *scratch) {
  const int64_t whole = channels > FS_PIECE ? FS_PIECE : FS_PIECE / channels * channels;
  for (int64_t k = 0; k < count; k++, scratch += FS_PIECE) {
    if (chain[k].kind >= FS_STAGE_CLIP || chain[k].span == FS_ELEMENTS) continue;
    if (chain[k].span == FS_ONE)
      for (int64_t i = 0; i < whole; i++) scratch[i] = chain[k].operand[0];
    else if (channels <= FS_PIECE)
      for (int64_t i = 0; i < whole; i += channels)
        memcpy(scratch + i, chain[k].operand, (size_t)channels * sizeof *scratch);
  }
}

/* fs_stages after repeat_operands; `source` and `result` begin with the first pixel. */
static __attribute__((noinline)) int64_t run_stages(const fs_stage *chain, int64_t count, int32_t pointwise,
                                                    int32_t unrounded, const float *source, int64_t channels,
                                                    int64_t first, int64_t last, const float *scratch, float *rounded,
                                                    float *result) {
  const int64_t whole = channels > FS_PIECE ? FS_PIECE : FS_PIECE / channels * channels;
  const float *operand[FS_MAX_STAGES];
  int64_t saturated = 0;
  for (int64_t at = first * channels, n; at < last * channels; at += n) {
    n = channels > FS_PIECE && channels - at % channels < whole ? channels - at % channels : whole;
    if (n > last * channels - at) n = last * channels - at;
    for (int64_t k = 0; k < count; k++) operand[k] = operands(chain + k, channels, at, scratch + k * FS_PIECE);
    const float *from = source + (at - first * channels);
    float *to = result + (at - first * channels);
    int64_t i = 0;
#ifdef FS_ROUND_FP16
    for (; pointwise == FS_FP16 && i + FS_RUN <= n; i += FS_RUN)
      if (!stages_in_registers(chain, count, unrounded, from + i, operand, at + i, i, rounded, to + i))
        saturated += stage_by_stage(pointwise, chain, count, unrounded, from + i, operand, at + i, i, FS_RUN, rounded,
                                    to + i);
#endif
    if (i < n)
      saturated += stage_by_stage(pointwise, chain, count, unrounded, from + i, operand, at + i, i, n - i, rounded,
                                  to + i);
  }
  return saturated;
}

int64_t FS_FN(fs_stages)(const fs_stage *chain, int64_t count, int32_t pointwise, int32_t unrounded, const float *source,
                        int64_t channels, int64_t first_pixel, int64_t last_pixel, float *scratch, float *rounded,
                        float *result) {
  fs_fp_state state = fs_fp_enter();
  repeat_operands(chain, count, channels, scratch);
  const int64_t first = first_pixel * channels;
  int64_t saturated = run_stages(chain, count, pointwise, unrounded, source + first, channels, first_pixel, last_pixel,
                                 scratch, rounded, result + first);
  fs_fp_leave(state);
  return saturated;
}
