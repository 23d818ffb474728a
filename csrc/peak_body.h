/* fs_peak for one variant: as many multiply-accumulates of small integers as the CPU can do, and nothing else.

   A variant may define FS_PEAK(sum, a, b) and FS_PEAK_MACS, the multiply-accumulates of one; by default FS_MADD. */
#include "common.h"

#ifndef FS_PEAK
#define FS_PEAK(sum, a, b) ((sum) + FS_MADD((v_int16)(a), (v_int16)(b)))
#define FS_PEAK_MACS (2 * FS_LANES)
#endif

/* Runs `rounds` rounds and returns how many multiply-accumulates they did; `sums` takes FS_LANES numbers. */
int64_t FS_FN(fs_peak)(int64_t rounds, int32_t *sums) {
  enum { CHAINS = 12 }; /* independent sums hide the latency */
  v_int32 sum[CHAINS] = {{0}}, a = {1}, b = {1};
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) {
#if defined(__x86_64__)
      __asm__ volatile("" : "+x"(a)); /* a might be another one: its product must be formed again */
#else
      __asm__ volatile("" : "+m"(a));
#endif
      sum[i] = FS_PEAK(sum[i], a, b);
    }
  }
  for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
  *(v_int32 *)sums = sum[0];
  return rounds * CHAINS * FS_PEAK_MACS;
}
