/* The kernels for CPUs of the level x86-64-v4, in vectors of 512 bits. */
#define FS_VARIANT_NAME avx512
#define FS_LANES 16
#define FS_TILE 7 /* 14 sums, 14 dot products, weights and a pixel: 32 registers */
#define FS_MADD(a, b) ((v_int32)__builtin_ia32_pmaddwd512_mask(a, b, (v_int32){0}, (unsigned short)-1))
#include "../stages_body.h"
#include "../conv_body.h"
#include "../depthwise_body.h"
#include "../peak_body.h"
#include "../pools_body.h"
#include "quantize_avx512.h"
#include "../quantize_body.h"
