// Doubles in one register of AVX-512 (F). doubles_plain.h says what each function does.
#pragma once
#include "doubles.h"

static const int WIDTH = 8;
struct Doubles { __m512d v; };

static inline Doubles wide(const double* p) { return {_mm512_loadu_pd(p)}; }
static inline Doubles wide(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
static inline void store(double* p, Doubles x) { _mm512_storeu_pd(p, x.v); }
static inline Doubles all(double x) { return {_mm512_set1_pd(x)}; }
static inline Doubles operator+(Doubles x, Doubles y) { return {_mm512_add_pd(x.v, y.v)}; }
static inline Doubles operator-(Doubles x, Doubles y) { return {_mm512_sub_pd(x.v, y.v)}; }
static inline Doubles operator*(Doubles x, Doubles y) { return {_mm512_mul_pd(x.v, y.v)}; }
static inline Doubles operator/(Doubles x, Doubles y) { return {_mm512_div_pd(x.v, y.v)}; }
static inline Doubles fma(Doubles x, Doubles y, Doubles z) { return {_mm512_fmadd_pd(x.v, y.v, z.v)}; }
static inline Doubles less(Doubles x, Doubles y, Doubles yes, Doubles no) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(x.v, y.v, _CMP_LT_OQ), no.v, yes.v)};
}
static inline Doubles times_power_of_2(Doubles x, Doubles n) {
  __m512i add = _mm512_slli_epi64(_mm512_castpd_si512(n.v), 52);
  return {_mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(x.v), add))};
}
static inline Doubles split(Doubles x, Doubles* k) {
  __m512i bits = _mm512_add_epi64(_mm512_castpd_si512(x.v), _mm512_set1_epi64(ONE_BITS - ROOT_BITS));
  __m512i power = _mm512_or_si512(_mm512_srli_epi64(bits, 52), _mm512_set1_epi64(POWER_BITS));
  *k = Doubles{_mm512_castsi512_pd(power)} - all(POWER_BIAS);
  bits = _mm512_and_si512(bits, _mm512_set1_epi64(MANTISSA));
  return {_mm512_castsi512_pd(_mm512_add_epi64(bits, _mm512_set1_epi64(ROOT_BITS)))};
}
