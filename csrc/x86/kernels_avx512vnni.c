/* The kernels for CPUs of the level x86-64-v4 with AVX-512 VNNI. */
#include <immintrin.h>
#ifndef FS_VARIANT_NAME
#define FS_VARIANT_NAME avx512vnni
#endif
#define FS_LANES 16
#define FS_TILE 7 /* 14 sums, 14 dot products, weights and a pixel: 32 registers */
#define FS_MADD(a, b) ((v_int32)__builtin_ia32_pmaddwd512_mask(a, b, (v_int32){0}, (unsigned short)-1))
#define FS_PEAK(sum, a, b) ((v_int32)__builtin_ia32_vpdpbusd_v16si(sum, a, b))
#define FS_PEAK_MACS (4 * FS_LANES)
#define FS_ROUND_FP16(x) _mm512_cvtph_ps(_mm512_cvtps_ph((__m512)(x), _MM_FROUND_TO_NEAREST_INT))
#define FS_LARGER(a, b) _mm512_max_epi32((__m512i)(a), (__m512i)(b))
#define FS_WITHIN(x, low, high) _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), (__m512)(x)))
#include "../stages_body.h"
#include "../conv_body.h"
#include "../depthwise_body.h"
#include "../peak_body.h"
#include "../pools_body.h"
#include "quantize_avx512.h"
#include "../quantize_body.h"
#ifndef FS_LOAD_HALVES /* those that compute in fp16 have no byte convolution of their own */
#define FS_BYTES_PIXELS 7
#define FS_BYTES_BIAS 128
#define FS_DOT(d, x, w) ((v_dots)_mm512_dpbusd_epi32((__m512i)(d), (__m512i)(x), (__m512i)(w)))
#include "sums_avx512.h"
#include "../bytes_fill_body.h"
#include "../bytes_conv_body.h"
#endif
