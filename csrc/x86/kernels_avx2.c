/* The kernels for CPUs of the level x86-64-v3, in vectors of 256 bits. */
#define FS_VARIANT_NAME avx2
#define FS_LANES 8
#define FS_TILE 3 /* 6 sums, 6 dot products, weights and a pixel: 16 registers */
#define FS_MADD(a, b) ((v_int32)__builtin_ia32_pmaddwd256(a, b))
#include "../stages_body.h"
#include "../conv_body.h"
#include "../depthwise_body.h"
#include "../peak_body.h"
#include "../pools_body.h"
#include "../quantize_body.h"
