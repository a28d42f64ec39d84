// Sixteen lanes as one register of AVX-512 (F, BW, DQ, VL), with VNNI where GPTX_VNNI is defined.
#pragma once

struct F { __m512 a; };
struct I { __m512i a; };
struct Bytes { __m512i a; };

static inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, F x) { _mm512_storeu_ps(p, x.a); }
static inline F all(float x) { return {_mm512_set1_ps(x)}; }
static inline F operator+(F x, F y) { return {_mm512_add_ps(x.a, y.a)}; }
static inline F operator-(F x, F y) { return {_mm512_sub_ps(x.a, y.a)}; }
static inline F operator*(F x, F y) { return {_mm512_mul_ps(x.a, y.a)}; }
static inline F operator/(F x, F y) { return {_mm512_div_ps(x.a, y.a)}; }
static inline F fma(F x, F y, F z) { return {_mm512_fmadd_ps(x.a, y.a, z.a)}; }
static inline F max(F x, F y) { return {_mm512_max_ps(x.a, y.a)}; }
static inline F min(F x, F y) { return {_mm512_min_ps(x.a, y.a)}; }
static inline F abs(F x) { return {_mm512_abs_ps(x.a)}; }
static inline F less(F x, F y, F yes, F no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.a, y.a, _CMP_LT_OQ), no.a, yes.a)};
}
static inline F whole(F x) { return {_mm512_roundscale_ps(x.a, 0)}; }
static inline I to_int(F x) { return {_mm512_cvtps_epi32(x.a)}; }
static inline F to_float(I x) { return {_mm512_cvtepi32_ps(x.a)}; }
static inline F power_of_2(I n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.a, _mm512_set1_epi32(127)), 23))};
}
static inline I all(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline I operator+(I x, I y) { return {_mm512_add_epi32(x.a, y.a)}; }
static inline I operator-(I x, I y) { return {_mm512_sub_epi32(x.a, y.a)}; }
static inline I operator*(I x, I y) { return {_mm512_mullo_epi32(x.a, y.a)}; }
static inline I load_bytes(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline Bytes load_levels(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline Bytes low_halves(Bytes w) { return {_mm512_and_si512(w.a, _mm512_set1_epi8(15))}; }
static inline Bytes high_halves(Bytes w) {
  return {_mm512_and_si512(_mm512_srli_epi16(w.a, 4), _mm512_set1_epi8(15))};
}
static inline I pick(Bytes w, int byte) {
  __m128i left = _mm_cvtsi32_si128(24 - 8 * byte), right = _mm_cvtsi32_si128(24);
  return {_mm512_sra_epi32(_mm512_sll_epi32(w.a, left), right)};
}
static inline I dot_small(I acc, Bytes w, int32_t four) {
  __m512i v = _mm512_set1_epi32(four);
#ifdef GPTX_VNNI
  return {_mm512_dpbusd_epi32(acc.a, w.a, v)};
#else
  return {_mm512_add_epi32(acc.a, _mm512_madd_epi16(_mm512_maddubs_epi16(w.a, v), _mm512_set1_epi16(1)))};
#endif
}
// |w| times the activation with w's sign, since the instructions take unsigned times signed bytes.
static inline I dot(I acc, Bytes w, int32_t four) {
  __m512i v = _mm512_set1_epi32(four);
  __mmask64 negative = _mm512_movepi8_mask(w.a);
  __m512i turned = _mm512_mask_sub_epi8(v, negative, _mm512_setzero_si512(), v);
  Bytes size = {_mm512_abs_epi8(w.a)};
#ifdef GPTX_VNNI
  return {_mm512_dpbusd_epi32(acc.a, size.a, turned)};
#else
  __m512i pairs = _mm512_maddubs_epi16(size.a, turned);
  return {_mm512_add_epi32(acc.a, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#endif
}
