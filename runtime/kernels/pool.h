// One thread pool per process.
#pragma once
#include "numbers.h"

// Call work(task, first, last) on ranges that together are 0 .. items, on up to `threads` threads.
// The caller works too. Ranges hold `grain` items or fewer. A call from a second thread waits up to
// 100 microseconds for the pool, then runs on its own thread.
void run_parallel(void (*work)(void* task, int64_t first, int64_t last), void* task, int64_t items,
                  int64_t grain, int threads);

// Keep this library loaded until the process ends. ONNX Runtime unloads it with the last session
// that uses it, and the pool's threads would then crash.
void stay_loaded();

// Round to nearest, keep subnormals; returns the state that was found.
uint64_t set_float_state();
void restore_float_state(uint64_t state);
