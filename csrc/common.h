/* What every kernel file needs: bit views, powers of two, and the state of the floating-point unit. */
#ifndef FS_COMMON_H
#define FS_COMMON_H
#include <math.h>
#include <string.h>

#include "kernels.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#define FS_INLINE static inline __attribute__((always_inline))
#define FS_JOIN_(a, b) a##_##b
#define FS_JOIN(a, b) FS_JOIN_(a, b)
/* FS_FN(fs_conv2d) is fs_conv2d_<the variant that is being compiled>. */
#define FS_FN(name) FS_JOIN(name, FS_VARIANT_NAME)

FS_INLINE uint32_t fs_bits(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

FS_INLINE float fs_float(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

FS_INLINE uint64_t fs_bits64(double x) {
  uint64_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

/* 2^e for -1022 <= e <= 1023. */
FS_INLINE double fs_power(int64_t e) {
  uint64_t u = (uint64_t)(e + 1023) << 52;
  double x;
  memcpy(&x, &u, sizeof x);
  return x;
}

/* Another library may have told this thread to flush subnormals to zero. The kernels switch to the IEEE state on the
   way in and back on the way out; the work in between stands in a function of its own that is not inlined, so that no
   operation moves across. */
#if defined(__SSE__)
typedef unsigned int fs_fp_state;
enum { FS_IEEE = 0x1f80 }; /* every exception masked, no flag raised */
FS_INLINE fs_fp_state fs_fp_enter(void) {
  fs_fp_state old = _mm_getcsr();
  _mm_setcsr(FS_IEEE);
  return old;
}
FS_INLINE void fs_fp_leave(fs_fp_state old) { _mm_setcsr(old); }
#elif defined(__aarch64__)
typedef uint64_t fs_fp_state;
FS_INLINE fs_fp_state fs_fp_enter(void) {
  fs_fp_state old;
  __asm__ volatile("mrs %0, fpcr" : "=r"(old));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
  return old;
}
FS_INLINE void fs_fp_leave(fs_fp_state old) { __asm__ volatile("msr fpcr, %0" : : "r"(old)); }
#else
typedef int fs_fp_state;
FS_INLINE fs_fp_state fs_fp_enter(void) { return 0; }
FS_INLINE void fs_fp_leave(fs_fp_state old) { (void)old; }
#endif
#endif
