/* What bytes_sums_body.h asks for with AVX-512. */
#define FS_FMADD(a, b, c) ((v_sums)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define FS_FMSUB(a, b, c) ((v_sums)_mm512_fmsub_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define FS_WIDEN(x) ((v_wide)_mm512_cvtps_pd((__m256)(x)))
#define FS_FMSUB_QUIET(a, b, c) \
  ((v_sums)_mm512_fmsub_round_ps((__m512)(a), (__m512)(b), (__m512)(c), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))
#define FS_NEARER(a, b) ((v_sums)_mm512_range_ps((__m512)(a), (__m512)(b), 2))
#define FS_FARTHER(a, b) ((v_sums)_mm512_range_ps((__m512)(a), (__m512)(b), 3))
#define FS_FMADD_ODD(a, b, c) ((v_sums)fmadd_to_odd((__m512)(a), (__m512)(b), (__m512)(c)))
/* Of a number that is not exact, one of the two neighbours is odd. */
static inline __m512 fmadd_to_odd(__m512 a, __m512 b, __m512 c) {
  const __m512 down = _mm512_fmadd_round_ps(a, b, c, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 up = _mm512_fmadd_round_ps(a, b, c, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
  return _mm512_mask_mov_ps(up, _mm512_test_epi32_mask(_mm512_castps_si512(down), _mm512_set1_epi32(1)), down);
}
