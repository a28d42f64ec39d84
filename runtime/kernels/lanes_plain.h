// Sixteen lanes in plain C++: the reference for every other instruction set.
#pragma once

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
static inline I load_bytes(const uint8_t* p) { I r; EACH r.v[i] = p[i]; return r; }
static inline Bytes load_levels(const int8_t* p) { Bytes r; __builtin_memcpy(&r, p, 64); return r; }
static inline Bytes low_halves(Bytes a) { for (int i = 0; i < 64; i++) a.v[i] &= 15; return a; }
static inline Bytes high_halves(Bytes a) {
  for (int i = 0; i < 64; i++) a.v[i] = (uint8_t)a.v[i] >> 4;
  return a;
}
// The levels at place `byte` of each group of four.
static inline I pick(Bytes a, int byte) { I r; EACH r.v[i] = a.v[4 * i + byte]; return r; }
// acc + the sum of the four products of each lane; `four` holds four activations.
static inline I dot(I acc, Bytes w, int32_t four) {
  int8_t a[4];
  __builtin_memcpy(a, &four, 4);
  EACH for (int j = 0; j < 4; j++) acc.v[i] += w.v[4 * i + j] * a[j];
  return acc;
}
static inline I dot_small(I acc, Bytes w, int32_t four) { return dot(acc, w, four); }
#undef EACH
