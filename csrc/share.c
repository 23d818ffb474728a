/* One pool of threads for the process. A thread takes items of its own share of the work, so that layer after layer it
   reads what it wrote, and then of those that are behind. Nobody waits for a thread that has not begun. */
#include "share.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE() ((void)0)
#endif

/* Pauses after which a thread stops asking: some 50 us, as layers follow each other within less. */
enum { PATIENCE = 1000 };

typedef struct {
  _Alignas(64) _Atomic int64_t next;
  int64_t end;
} share;

static struct {
  pthread_mutex_t owner; /* held by whose work is shared out */
  fs_item_fn *run;
  void *work;
  int64_t threads, helpers; /* of this work; that have been started */
  share shares[FS_MAX_THREADS];
  _Alignas(64) _Atomic int64_t works; /* so far */
  _Atomic int is_open;
  _Alignas(64) _Atomic int64_t inside; /* helpers that may be reading what is above */
  _Alignas(64) pthread_mutex_t bed;
  pthread_cond_t bell;
  _Atomic int64_t asleep;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .bed = PTHREAD_MUTEX_INITIALIZER, .bell = PTHREAD_COND_INITIALIZER};

static void take_items(int64_t thread) {
  for (int64_t k = 0; k < pool.threads; k++) {
    share *s = &pool.shares[(thread + k) % pool.threads];
    for (int64_t item; (item = atomic_fetch_add(&s->next, 1)) < s->end;) pool.run(pool.work, item, thread);
  }
}

/* Waits for more than `seen` works; returns how many. */
static int64_t next_work(int64_t seen) {
  int64_t works;
  for (int i = 0; i < PATIENCE; i++) {
    if ((works = atomic_load(&pool.works)) != seen) return works;
    PAUSE();
  }
  pthread_mutex_lock(&pool.bed);
  atomic_fetch_add(&pool.asleep, 1);
  while ((works = atomic_load(&pool.works)) == seen) pthread_cond_wait(&pool.bell, &pool.bed);
  atomic_fetch_sub(&pool.asleep, 1);
  pthread_mutex_unlock(&pool.bed);
  return works;
}

static void *help(void *number) {
  const int64_t thread = (intptr_t)number;
  for (int64_t seen = 0;;) {
    seen = next_work(seen);
    atomic_fetch_add(&pool.inside, 1);
    if (atomic_load(&pool.is_open) && thread < pool.threads) take_items(thread);
    atomic_fetch_sub(&pool.inside, 1);
  }
  return NULL;
}

/* A forked child has the pool but not its threads. */
static void begin_anew(void) {
  pthread_mutex_init(&pool.owner, NULL);
  pthread_mutex_init(&pool.bed, NULL);
  pthread_cond_init(&pool.bell, NULL);
  pool.helpers = 0;
  atomic_store(&pool.is_open, 0);
  atomic_store(&pool.inside, 0);
  atomic_store(&pool.asleep, 0);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, begin_anew); }

/* Starts helpers up to that many, as far as the system allows; signals are for the program's own threads. */
static void start_helpers(int64_t wanted) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  sigset_t all, before;
  if (pool.helpers >= wanted) return;
  pthread_once(&once, watch_forks);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (pthread_t id; pool.helpers < wanted; pool.helpers++) {
    if (pthread_create(&id, NULL, help, (void *)(intptr_t)(pool.helpers + 1))) break;
    pthread_detach(id);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void fs_share(int64_t threads, int64_t items, fs_item_fn *run, void *work) {
  threads = threads < items ? threads : items;
  threads = threads < FS_MAX_THREADS ? threads : FS_MAX_THREADS;
  if (threads <= 1 || pthread_mutex_trylock(&pool.owner)) {
    for (int64_t item = 0; item < items; item++) run(work, item, 0);
    return;
  }
  start_helpers(threads - 1);
  pool.run = run, pool.work = work, pool.threads = threads;
  for (int64_t i = 0; i < threads; i++) {
    atomic_store(&pool.shares[i].next, items * i / threads);
    pool.shares[i].end = items * (i + 1) / threads;
  }
  atomic_store(&pool.is_open, 1);
  atomic_fetch_add(&pool.works, 1);
  if (atomic_load(&pool.asleep)) {
    pthread_mutex_lock(&pool.bed);
    pthread_cond_broadcast(&pool.bell);
    pthread_mutex_unlock(&pool.bed);
  }
  take_items(0);
  atomic_store(&pool.is_open, 0);
  for (int i = 0; atomic_load(&pool.inside); i++) {
    if (i < PATIENCE) PAUSE();
    else sched_yield();
  }
  pthread_mutex_unlock(&pool.owner);
}
