/* Work that several threads share out among themselves. */
#ifndef FS_SHARE_H
#define FS_SHARE_H
#include <stdint.h>

enum { FS_MAX_THREADS = 64 };

/* One item of some work, on thread 0 <= thread < FS_MAX_THREADS. */
typedef void fs_item_fn(void *work, int64_t item, int64_t thread);

/* Runs each item 0 <= item < items once, on up to `threads` threads, the caller's included, which is thread 0; on that
   alone while other work is being shared out. */
void fs_share(int64_t threads, int64_t items, fs_item_fn *run, void *work);
#endif
