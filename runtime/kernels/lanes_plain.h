// Sixteen lanes in plain C++: the reference for every other instruction set.
#pragma once
#include "half.h"

struct F { float v[16]; };    // sixteen floats
struct I { int32_t v[16]; };  // sixteen 32-bit integers
struct Bytes { int8_t v[64]; };  // sixteen groups of four bytes

#define EACH for (int i = 0; i < 16; i++)
static inline F load(const float* p) { F r; EACH r.v[i] = p[i]; return r; }
static inline void store(float* p, F a) { EACH p[i] = a.v[i]; }
static inline F all(float x) { F r; EACH r.v[i] = x; return r; }
static inline F operator+(F a, F b) { EACH a.v[i] = a.v[i] + b.v[i]; return a; }
static inline F operator-(F a, F b) { EACH a.v[i] = a.v[i] - b.v[i]; return a; }
static inline F operator*(F a, F b) { EACH a.v[i] = a.v[i] * b.v[i]; return a; }
static inline F operator/(F a, F b) { EACH a.v[i] = a.v[i] / b.v[i]; return a; }
static inline F fma(F a, F b, F c) { EACH c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]); return c; }
static inline F max(F a, F b) { EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F min(F a, F b) { EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F abs(F a) { EACH a.v[i] = __builtin_fabsf(a.v[i]); return a; }
static inline F less(F a, F b, F yes, F no) { EACH no.v[i] = a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; return no; }
static inline F whole(F a) { EACH a.v[i] = __builtin_rintf(a.v[i]); return a; }
static inline I to_int(F a) {
  I r;
  EACH r.v[i] = __builtin_fabsf(a.v[i]) < 2147483520.0f ? (int32_t)__builtin_rintf(a.v[i]) : 0;
  return r;
}
static inline F to_float(I a) { F r; EACH r.v[i] = (float)a.v[i]; return r; }
static inline F power_of_2(I n) {
  F r;
  EACH { uint32_t bits = (uint32_t)(n.v[i] + 127) << 23; __builtin_memcpy(&r.v[i], &bits, 4); }
  return r;
}
static inline I all(int32_t x) { I r; EACH r.v[i] = x; return r; }
static inline I operator+(I a, I b) { EACH a.v[i] += b.v[i]; return a; }
static inline I operator-(I a, I b) { EACH a.v[i] -= b.v[i]; return a; }
static inline I operator*(I a, I b) { EACH a.v[i] *= b.v[i]; return a; }
// The sum of the lanes, always added as a tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
static inline float sum(F a) {
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
  return a.v[0];
}
static inline float largest(F a) {
  float m = a.v[0];
  EACH m = a.v[i] > m ? a.v[i] : m;
  return m;
}
static inline int32_t total(I a) { int32_t sum = 0; EACH sum += a.v[i]; return sum; }
static inline I load_bytes(const uint8_t* p) { I r; EACH r.v[i] = p[i]; return r; }
static inline I load_signed(const int8_t* p) { I r; EACH r.v[i] = p[i]; return r; }
// Floats of 16 bits (see half.h): a float is rounded to the nearest, ties to even.
static inline uint16_t narrowed(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);   // NaN
  if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);  // rounds to infinity
  if (size < 0x38800000)                                     // rounds to a multiple of 2^-24
    return (uint16_t)(sign | (uint32_t)__builtin_rintf(__builtin_fabsf(x) * 0x1p24f));
  return (uint16_t)(sign | ((size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13));
}
static inline F load_half(const uint16_t* p) { F r; EACH r.v[i] = widened(p[i]); return r; }
static inline void store_half(uint16_t* p, F a) { EACH p[i] = narrowed(a.v[i]); }

// Weights of 4 to 6 bits.
static inline Bytes load_levels(const int8_t* p) { Bytes r; __builtin_memcpy(&r, p, 64); return r; }
template <int SHIFT, int MASK>
static inline Bytes bits_of(Bytes a) {
  for (int i = 0; i < 64; i++) a.v[i] = (uint8_t)a.v[i] >> SHIFT & MASK;
  return a;
}
// low + 16 (high >> shift & mask)
static inline Bytes with_high(Bytes low, Bytes high, int shift, int mask) {
  for (int i = 0; i < 64; i++) low.v[i] |= ((uint8_t)high.v[i] >> shift & mask) << 4;
  return low;
}
static inline Bytes look_up(const int8_t* table, Bytes a) {  // a: 0 to 15
  for (int i = 0; i < 64; i++) a.v[i] = table[a.v[i]];
  return a;
}
// The levels at place `byte` of each group of four.
static inline I pick(Bytes a, int byte) { I r; EACH r.v[i] = a.v[4 * i + byte]; return r; }

// Products of 8 bits: acc + the sum of the four products of each lane with four activations.
typedef int8_t Level;                    // an activation, as these products take it
typedef Bytes Levels;                    // weights, as they take them
static const int OFFSET = 0;             // what spread() adds to each weight
static const int TILE = 2, SMALL_TILE = 2;  // tokens that share a weight in registers, at most
static inline Levels spread(Bytes w) { return w; }
static inline void put(int8_t* p, I levels) { EACH p[i] = (int8_t)levels.v[i]; }
static inline I dot(I acc, const Levels& w, const Level* a) {
  EACH for (int j = 0; j < 4; j++) acc.v[i] += w.v[4 * i + j] * a[j];
  return acc;
}
// Products of weights from 0 to 63 with activations of 8 bits. Their sum is gathered in `Small`:
// 32 inputs of 4 bits, 16 of 5 bits, 8 of 6 bits at most.
typedef I Small;
static inline Small small(I acc) { return acc; }
static inline Small dot_small(Small acc, Bytes w, const int8_t* a) { return dot(acc, w, a); }
static inline I add_small(I, Small sum) { return sum; }
#undef EACH
