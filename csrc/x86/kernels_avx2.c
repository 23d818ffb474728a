/* The kernels for CPUs of the level x86-64-v3, in vectors of 256 bits. */
#include <immintrin.h>
#define FS_VARIANT_NAME avx2
#define FS_LANES 8
#define FS_TILE 3 /* 6 sums, 6 dot products, weights and a pixel: 16 registers */
#define FS_MADD(a, b) ((v_int32)__builtin_ia32_pmaddwd256(a, b))
#define FS_ROUND_FP16(x) _mm256_cvtph_ps(_mm256_cvtps_ph((__m256)(x), _MM_FROUND_TO_NEAREST_INT))
#define FS_LARGER(a, b) _mm256_max_epi32((__m256i)(a), (__m256i)(b))
#define FS_WITHIN(x, low, high) _mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)(x)))
#include "../stages_body.h"
#include "../conv_body.h"
#include "../depthwise_body.h"
#include "../peak_body.h"
#include "../pools_body.h"
#include "quantize_avx2.h"
#include "../quantize_body.h"

#define FS_BYTES_PIXELS 4
#define FS_BYTES_BIAS 0
/* Signed bytes by way of |x| and w with x's sign. Two products stay below 2^15, since w >= -127 (fs_bytes_fit). */
#define FS_DOT(d, x, w)                                                                                     \
  ((d) + (v_dots)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)(x)),                      \
                                                        _mm256_sign_epi8((__m256i)(w), (__m256i)(x))),      \
                                   _mm256_set1_epi16(1)))
#include "sums_avx2.h"
#include "../bytes_fill_body.h"
#include "../bytes_conv_body.h"
