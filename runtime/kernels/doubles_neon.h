// Doubles in one register of NEON. doubles_plain.h says what each function does.
#pragma once
#include "doubles.h"

static const int WIDTH = 2;
struct Doubles { float64x2_t v; };

static inline Doubles wide(const double* p) { return {vld1q_f64(p)}; }
static inline Doubles wide(const float* p) { return {vcvt_f64_f32(vld1_f32(p))}; }
static inline void store(double* p, Doubles x) { vst1q_f64(p, x.v); }
static inline Doubles all(double x) { return {vdupq_n_f64(x)}; }
static inline Doubles operator+(Doubles x, Doubles y) { return {vaddq_f64(x.v, y.v)}; }
static inline Doubles operator-(Doubles x, Doubles y) { return {vsubq_f64(x.v, y.v)}; }
static inline Doubles operator*(Doubles x, Doubles y) { return {vmulq_f64(x.v, y.v)}; }
static inline Doubles operator/(Doubles x, Doubles y) { return {vdivq_f64(x.v, y.v)}; }
static inline Doubles fma(Doubles x, Doubles y, Doubles z) { return {vfmaq_f64(z.v, x.v, y.v)}; }
static inline Doubles less(Doubles x, Doubles y, Doubles yes, Doubles no) {
  return {vbslq_f64(vcltq_f64(x.v, y.v), yes.v, no.v)};
}
static inline Doubles times_power_of_2(Doubles x, Doubles n) {
  int64x2_t add = vshlq_n_s64(vreinterpretq_s64_f64(n.v), 52);
  return {vreinterpretq_f64_s64(vaddq_s64(vreinterpretq_s64_f64(x.v), add))};
}
static inline Doubles split(Doubles x, Doubles* k) {
  uint64x2_t bits = vaddq_u64(vreinterpretq_u64_f64(x.v), vdupq_n_u64(ONE_BITS - ROOT_BITS));
  uint64x2_t power = vorrq_u64(vshrq_n_u64(bits, 52), vdupq_n_u64(POWER_BITS));
  *k = Doubles{vreinterpretq_f64_u64(power)} - all(POWER_BIAS);
  bits = vandq_u64(bits, vdupq_n_u64(MANTISSA));
  return {vreinterpretq_f64_u64(vaddq_u64(bits, vdupq_n_u64(ROOT_BITS)))};
}
