// Doubles in one register of AVX2, with FMA. doubles_plain.h says what each function does.
#pragma once
#include "doubles.h"

static const int WIDTH = 4;
struct Doubles { __m256d v; };

static inline Doubles wide(const double* p) { return {_mm256_loadu_pd(p)}; }
static inline Doubles wide(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
static inline void store(double* p, Doubles x) { _mm256_storeu_pd(p, x.v); }
static inline Doubles all(double x) { return {_mm256_set1_pd(x)}; }
static inline Doubles operator+(Doubles x, Doubles y) { return {_mm256_add_pd(x.v, y.v)}; }
static inline Doubles operator-(Doubles x, Doubles y) { return {_mm256_sub_pd(x.v, y.v)}; }
static inline Doubles operator*(Doubles x, Doubles y) { return {_mm256_mul_pd(x.v, y.v)}; }
static inline Doubles operator/(Doubles x, Doubles y) { return {_mm256_div_pd(x.v, y.v)}; }
static inline Doubles fma(Doubles x, Doubles y, Doubles z) { return {_mm256_fmadd_pd(x.v, y.v, z.v)}; }
static inline Doubles less(Doubles x, Doubles y, Doubles yes, Doubles no) {
  return {_mm256_blendv_pd(no.v, yes.v, _mm256_cmp_pd(x.v, y.v, _CMP_LT_OQ))};
}
static inline Doubles times_power_of_2(Doubles x, Doubles n) {
  __m256i add = _mm256_slli_epi64(_mm256_castpd_si256(n.v), 52);
  return {_mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x.v), add))};
}
static inline Doubles split(Doubles x, Doubles* k) {
  __m256i bits = _mm256_add_epi64(_mm256_castpd_si256(x.v), _mm256_set1_epi64x(ONE_BITS - ROOT_BITS));
  __m256i power = _mm256_or_si256(_mm256_srli_epi64(bits, 52), _mm256_set1_epi64x(POWER_BITS));
  *k = Doubles{_mm256_castsi256_pd(power)} - all(POWER_BIAS);
  bits = _mm256_and_si256(bits, _mm256_set1_epi64x(MANTISSA));
  return {_mm256_castsi256_pd(_mm256_add_epi64(bits, _mm256_set1_epi64x(ROOT_BITS)))};
}
