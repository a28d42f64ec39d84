#include "pool.h"

#if defined(_WIN32)
#include <windows.h>
static SRWLOCK lock = SRWLOCK_INIT;
static CONDITION_VARIABLE wake = CONDITION_VARIABLE_INIT;
static void acquire() { AcquireSRWLockExclusive(&lock); }
static void release() { ReleaseSRWLockExclusive(&lock); }
static void sleep_locked() { SleepConditionVariableSRW(&wake, &lock, INFINITE, 0); }
static void wake_all() { WakeAllConditionVariable(&wake); }
static uint64_t nanoseconds() {
  LARGE_INTEGER now, rate;
  QueryPerformanceCounter(&now), QueryPerformanceFrequency(&rate);
  return (uint64_t)((double)now.QuadPart * 1e9 / (double)rate.QuadPart);
}
#else
#include <dlfcn.h>
#include <pthread.h>
#include <time.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static void acquire() { pthread_mutex_lock(&lock); }
static void release() { pthread_mutex_unlock(&lock); }
static void sleep_locked() { pthread_cond_wait(&wake, &lock); }
static void wake_all() { pthread_cond_broadcast(&wake); }
static uint64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
#endif

static inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

uint64_t set_float_state() {
#if defined(__x86_64__)
  uint32_t found = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(0x1f80);
  return found;
#elif defined(__aarch64__)
  uint64_t found;
  __asm__ volatile("mrs %0, fpcr" : "=r"(found));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
  return found;
#else
  return 0;
#endif
}

void restore_float_state(uint64_t state) {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr((uint32_t)state);
#elif defined(__aarch64__)
  __asm__ volatile("msr fpcr, %0" : : "r"(state));
#else
  (void)state;
#endif
}

// The job, and three words that make it safe to share:
//   invitation  (job number << 8) | places left. A worker that takes a place may read the job. The
//               caller takes back all free places before it returns, so a worker that is late
//               finds none.
//   next        the first item that nobody has taken yet
//   leaving     places that were given back
static const int MOST_WORKERS = 255;
static const uint64_t SPIN = 50000;  // nanoseconds for which a worker waits awake

static struct {
  void (*work)(void*, int64_t, int64_t);
  void* task;
  int64_t items, grain;
} job;
static uint64_t invitation;
static int64_t next, leaving;
static int busy, workers, sleepers;

template <class T>
static T read(T* p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
template <class T>
static void write(T* p, T v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

static void work_off() {
  for (;;) {
    int64_t first = __atomic_fetch_add(&next, job.grain, __ATOMIC_SEQ_CST);
    if (first >= job.items) return;
    job.work(job.task, first, least(first + job.grain, job.items));
  }
}

static bool take_place() {
  uint64_t seen = read(&invitation);
  while (seen & 255)
    if (__atomic_compare_exchange_n(&invitation, &seen, seen - 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      return true;
  return false;
}

static void serve() {
  set_float_state();
  for (uint64_t since = nanoseconds();;) {
    if (take_place()) {
      work_off();
      __atomic_fetch_add(&leaving, 1, __ATOMIC_SEQ_CST);
      since = nanoseconds();
      continue;
    }
    pause();
    if (nanoseconds() - since < SPIN) continue;
    acquire();
    __atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
    while (!(read(&invitation) & 255)) sleep_locked();
    __atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
    release();
    since = nanoseconds();
  }
}

#if defined(_WIN32)
static DWORD WINAPI start(void*) { serve(); return 0; }
static bool add_worker() {
  HANDLE thread = CreateThread(nullptr, 0, start, nullptr, 0, nullptr);
  if (thread) CloseHandle(thread);
  return thread != nullptr;
}
static void prepare_for_fork() {}
#else
static void* start(void*) { serve(); return nullptr; }
static bool add_worker() {
  pthread_t thread;
  if (pthread_create(&thread, nullptr, start, nullptr)) return false;
  pthread_detach(thread);
  return true;
}
// A child of fork has no workers, and may have been forked while the lock was held.
static void forget_workers() {
  lock = PTHREAD_MUTEX_INITIALIZER;
  wake = PTHREAD_COND_INITIALIZER;
  busy = workers = sleepers = 0;
  invitation = 0;
}
static void prepare_for_fork() {
  static bool done;
  if (!done) pthread_atfork(nullptr, nullptr, forget_workers);
  done = true;
}
#endif

static bool enter() {
  int free = 0;
  if (__atomic_compare_exchange_n(&busy, &free, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return true;
  for (uint64_t since = nanoseconds(); nanoseconds() - since < 100000;) {
    pause();
    free = 0;
    if (!read(&busy) && __atomic_compare_exchange_n(&busy, &free, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
      return true;
  }
  return false;
}

void run_parallel(void (*work)(void*, int64_t, int64_t), void* task, int64_t items, int64_t grain, int threads) {
  int helpers = (int)least(least(threads - 1, MOST_WORKERS), (items + grain - 1) / grain - 1);
  if (helpers <= 0 || !enter()) return work(task, 0, items);
  prepare_for_fork();
  while (workers < helpers && add_worker()) workers++;
  job = {work, task, items, grain};
  write(&next, (int64_t)0);
  write(&leaving, (int64_t)0);
  uint64_t number = (read(&invitation) >> 8) + 1, places = (uint64_t)least(helpers, workers);
  write(&invitation, number << 8 | places);
  if (read(&sleepers)) {
    acquire();
    wake_all();
    release();
  }
  work_off();
  uint64_t left = __atomic_exchange_n(&invitation, number << 8, __ATOMIC_SEQ_CST) & 255;
  while (read(&leaving) < (int64_t)(places - left)) pause();
  write(&busy, 0);
}

void stay_loaded() {
#if defined(_WIN32)
  HMODULE module;
  GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, (LPCSTR)&job, &module);
#else
  Dl_info here;
  if (dladdr((void*)&job, &here)) dlopen(here.dli_fname, RTLD_NOW | RTLD_NODELETE);
#endif
}
