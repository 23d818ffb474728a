/* What bytes_sums_body.h asks for with AVX2. */
#define FS_FMADD(a, b, c) ((v_sums)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FS_FMSUB(a, b, c) ((v_sums)_mm256_fmsub_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FS_WIDEN(x) ((v_wide)_mm256_cvtps_pd((__m128)(x)))
