// Integer types without the C++ standard library.
#pragma once
#include <stddef.h>
#include <stdint.h>

static inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// A loop whose count the compiler knows, written out, so that sums[r][t] and its like stay in
// registers. -O2 alone leaves them in memory, which makes products of several tokens half as fast.
#ifndef UNROLLED
#define UNROLLED(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < n; i++)
#endif
// Small pieces of loops, whose arrays must stay in registers.
#define INLINE static inline __attribute__((always_inline))
