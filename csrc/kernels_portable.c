/* The kernels in C that any compiler of GNU C takes, for the CPU that the compiler assumes anyway. */
#define FS_VARIANT_NAME portable
#define FS_LANES 4
#define FS_TILE 4
#if defined(__SSE2__) /* part of every x86-64 */
#define FS_MADD(a, b) ((v_int32)__builtin_ia32_pmaddwd128(a, b))
#endif
#include "stages_body.h"
#include "conv_body.h"
#include "depthwise_body.h"
#include "peak_body.h"
#include "pools_body.h"
#include "quantize_body.h"
