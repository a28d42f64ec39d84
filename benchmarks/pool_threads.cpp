// Several threads run jobs of random sizes in the pool at once. Each job adds 1 to each of its items
// without an atomic, so the thread sanitizer sees an item that two threads take. Pauses between
// jobs let the workers sleep. kernel_sanitizers.py builds and runs it.
//
//   pool_threads JOBS         from four threads
//   pool_threads JOBS fork    from a thread, and from children forked while it is inside its jobs
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../runtime/kernels/pool.h"

static const int CALLERS = 4, MOST_ITEMS = 2000;
static int jobs;

static void count(void* items, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i++) ((int*)items)[i]++;
}

static void* call(void* seed) {
  uint64_t state = *(uint64_t*)seed;
  auto below = [&](int64_t n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)(state >> 33) % n;
  };
  int items[MOST_ITEMS];
  for (int job = 0; job < jobs; job++) {
    int64_t n = below(MOST_ITEMS + 1), grain = 1 + below(64);
    memset(items, 0, sizeof items);
    run_parallel(count, items, n, grain, 1 + (int)below(8));
    for (int64_t i = 0; i < MOST_ITEMS; i++)
      if (items[i] != (i < n)) printf("item %d of %d ran %d times\n", (int)i, (int)n, items[i]), exit(1);
    timespec pause = {0, 1000 * below(300)};
    if (below(4) == 0) nanosleep(&pause, nullptr);
  }
  return nullptr;
}

static int call_from_children() {
  uint64_t seed = 9;
  pthread_t thread;
  if (pthread_create(&thread, nullptr, call, &seed)) return 1;
  for (uint64_t child = 10; child < 30; child++) {
    usleep(200);
    pid_t id = fork();
    if (id == 0) {
      alarm(100);  // a pool that waits for workers of the parent would wait for ever
      jobs /= 20;
      call(&child);
      _exit(0);
    }
    int status = -1;
    waitpid(id, &status, 0);
    if (status) return printf("child %d ended with %d\n", (int)child, status), 1;
  }
  pthread_join(thread, nullptr);
  return 0;
}

int main(int argc, char** argv) {
  jobs = argc > 1 ? atoi(argv[1]) : 1000;
  if (argc > 2 && !strcmp(argv[2], "fork")) return call_from_children();
  pthread_t threads[CALLERS];
  uint64_t seeds[CALLERS];
  for (int i = 0; i < CALLERS; i++) {
    seeds[i] = (uint64_t)i + 1;
    if (pthread_create(&threads[i], nullptr, call, &seeds[i])) return 1;
  }
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  return 0;
}
