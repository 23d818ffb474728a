/* The byte convolution of int16 mantissas for CPUs of the level x86-64-v4 with AVX-512 VNNI. */
#include <immintrin.h>
#define FS_VARIANT_NAME words_avx512vnni
#define FS_LANES 16
#define FS_ROUND_FP16(x) _mm512_cvtph_ps(_mm512_cvtps_ph((__m512)(x), _MM_FROUND_TO_NEAREST_INT))
#define FS_LARGER(a, b) _mm512_max_epi32((__m512i)(a), (__m512i)(b))
#define FS_WITHIN(x, low, high) _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)(x)))
#include "../stages_body.h"

#define FS_BYTES_WORDS
#define FS_BYTES_PIXELS 7
#define FS_DOT(d, x, w) ((v_dots)_mm512_dpwssd_epi32((__m512i)(d), (__m512i)(x), (__m512i)(w)))
#include "sums_avx512.h"
#include "quantize_avx512.h"
#include "../bytes_fill_body.h"
#include "../bytes_conv_body.h"
