/* The byte convolution of int16 mantissas for CPUs of the level x86-64-v3. */
#include <immintrin.h>
#define FS_VARIANT_NAME words_avx2
#define FS_LANES 8
#define FS_ROUND_FP16(x) _mm256_cvtph_ps(_mm256_cvtps_ph((__m256)(x), _MM_FROUND_TO_NEAREST_INT))
#define FS_LARGER(a, b) _mm256_max_epi32((__m256i)(a), (__m256i)(b))
#define FS_WITHIN(x, low, high) _mm256_min_ps(_mm256_set1_ps(high), _mm256_max_ps(_mm256_set1_ps(low), (__m256)(x)))
#include "../stages_body.h"

#define FS_BYTES_WORDS
#define FS_BYTES_PIXELS 4
#define FS_DOT(d, x, w) ((d) + (v_dots)_mm256_madd_epi16((__m256i)(x), (__m256i)(w)))
#include "sums_avx2.h"
#include "quantize_avx2.h"
#include "../bytes_fill_body.h"
#include "../bytes_conv_body.h"
