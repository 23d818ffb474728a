/* The kernels for CPUs of the level x86-64-v4 with AVX-512 VNNI that compute in fp16. */
#define FS_VARIANT_NAME avx512fp16
#define FS_LOAD_HALVES(p) load_halves(p)
#define FS_STORE_HALVES(p, v) store_halves(p, (__m512h)(v))
#include <immintrin.h>

static inline __m512h load_halves(const float *x) {
  const __m256h low = _mm512_cvtxps_ph(_mm512_loadu_ps(x)), high = _mm512_cvtxps_ph(_mm512_loadu_ps(x + 16));
  return (__m512h)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
}

static inline void store_halves(float *to, __m512h x) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm512_castsi512_si256((__m512i)x)));
  _mm512_storeu_ps(to + 16, _mm512_cvtph_ps(_mm512_extracti64x4_epi64((__m512i)x, 1)));
}

#include "kernels_avx512vnni.c"
