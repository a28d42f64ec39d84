// Doubles in plain C++: the reference for every other instruction set. A register holds WIDTH
// doubles; the sixteen lanes of a sum are 16 / WIDTH registers.
#pragma once
#include "doubles.h"

static const int WIDTH = 1;
struct Doubles { double v; };

static inline Doubles wide(const double* p) { return {*p}; }
static inline Doubles wide(const float* p) { return {*p}; }
static inline void store(double* p, Doubles x) { *p = x.v; }
static inline Doubles all(double x) { return {x}; }
static inline Doubles operator+(Doubles x, Doubles y) { return {x.v + y.v}; }
static inline Doubles operator-(Doubles x, Doubles y) { return {x.v - y.v}; }
static inline Doubles operator*(Doubles x, Doubles y) { return {x.v * y.v}; }
static inline Doubles operator/(Doubles x, Doubles y) { return {x.v / y.v}; }
static inline Doubles fma(Doubles x, Doubles y, Doubles z) { return {__builtin_fma(x.v, y.v, z.v)}; }
static inline Doubles less(Doubles x, Doubles y, Doubles yes, Doubles no) { return x.v < y.v ? yes : no; }
// x * 2^n, where n is a whole number that was added to SHIFTER.
static inline Doubles times_power_of_2(Doubles x, Doubles n) {
  uint64_t bits, add;
  __builtin_memcpy(&bits, &x, 8), __builtin_memcpy(&add, &n, 8);
  bits += add << 52;
  __builtin_memcpy(&x, &bits, 8);
  return x;
}
// x = m * 2^k with m from sqrt(1/2) to sqrt(2), for a positive x that is not subnormal.
static inline Doubles split(Doubles x, Doubles* k) {
  uint64_t bits, power;
  __builtin_memcpy(&bits, &x, 8);
  bits += ONE_BITS - ROOT_BITS;
  power = bits >> 52 | POWER_BITS;
  bits = (bits & MANTISSA) + ROOT_BITS;
  __builtin_memcpy(&x, &bits, 8), __builtin_memcpy(k, &power, 8);
  *k = *k - all(POWER_BIAS);
  return x;
}
