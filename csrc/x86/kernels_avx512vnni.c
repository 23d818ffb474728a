/* The kernels for CPUs of the level x86-64-v4 with AVX-512 VNNI. */
#define FS_VARIANT_NAME avx512vnni
#define FS_LANES 16
#define FS_TILE 7 /* 14 sums, 14 dot products, weights and a pixel: 32 registers */
#define FS_MADD(a, b) ((v_int32)__builtin_ia32_pmaddwd512_mask(a, b, (v_int32){0}, (unsigned short)-1))
#define FS_PEAK(sum, a, b) ((v_int32)__builtin_ia32_vpdpbusd_v16si(sum, a, b))
#define FS_PEAK_MACS (4 * FS_LANES)
#include "../stages_body.h"
#include "../conv_body.h"
#include "../depthwise_body.h"
#include "../peak_body.h"
#include "../pools_body.h"
#include "quantize_avx512.h"
#include "../quantize_body.h"
#include "bytes_conv_avx512vnni.h"
#include "bytes_fill_avx512.h"
