// The intrinsics of AVX-512 for a processor without it: SIMDe's, and those that SIMDe 0.7 lacks.
// kernel_bits.py puts this file before kernels_avx512.cpp and kernels_avx512vnni.cpp.
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <string.h>

#undef _mm512_madd_epi16  // SIMDe 0.7 gives this name to the masked form
#define _mm512_madd_epi16 simde_mm512_madd_epi16

// The two halves of 32 bytes, or sixteen numbers of type T.
static inline void halves_of(simde__m512i x, __m256i (&half)[2]) { memcpy(half, &x, 64); }
static inline void halves_of(simde__m512 x, __m256 (&half)[2]) { memcpy(half, &x, 64); }
static inline simde__m512i joined(__m256i low, __m256i high) {
  simde__m512i x;
  memcpy(&x, &low, 32), memcpy((char*)&x + 32, &high, 32);
  return x;
}
static inline simde__m512 joined(__m256 low, __m256 high) {
  simde__m512 x;
  memcpy(&x, &low, 32), memcpy((char*)&x + 32, &high, 32);
  return x;
}

// Conversions keep the processor's own behaviour for NaN and numbers out of range: each half is
// converted by AVX2 and F16C.
static inline simde__m512i emulated_cvtepu8(__m128i x) {
  return joined(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
static inline simde__m512i emulated_cvtepi8(__m128i x) {
  return joined(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
static inline simde__m512 emulated_to_float(simde__m512i x) {
  __m256i half[2];
  halves_of(x, half);
  return joined(_mm256_cvtepi32_ps(half[0]), _mm256_cvtepi32_ps(half[1]));
}
static inline simde__m512i emulated_to_int(simde__m512 x) {
  __m256 half[2];
  halves_of(x, half);
  return joined(_mm256_cvtps_epi32(half[0]), _mm256_cvtps_epi32(half[1]));
}
static inline simde__m512d emulated_to_double(__m256 x) {
  __m256d half[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
  simde__m512d y;
  memcpy(&y, half, 64);
  return y;
}
static inline simde__m512 emulated_from_half(__m256i x) {
  return joined(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
static inline __m256i emulated_to_half(simde__m512 x) {
  __m256 half[2];
  halves_of(x, half);
  return _mm256_set_m128i(_mm256_cvtps_ph(half[1], 0), _mm256_cvtps_ph(half[0], 0));
}
static inline __m256 emulated_extract(simde__m512 x, int which) {
  __m256 half[2];
  halves_of(x, half);
  return half[which];
}
// The lowest bytes of each number: truncated, not saturated.
template <class T, class VECTOR>
static inline VECTOR emulated_truncate(simde__m512i x) {
  int32_t v[16];
  T r[16];
  VECTOR y;
  memcpy(v, &x, 64);
  for (int i = 0; i < 16; i++) r[i] = (T)v[i];
  memcpy(&y, r, sizeof(y));
  return y;
}
static inline simde__m512i emulated_sra(simde__m512i x, __m128i count) {
  __m256i half[2];
  halves_of(x, half);
  return joined(_mm256_sra_epi32(half[0], count), _mm256_sra_epi32(half[1], count));
}
static inline int32_t emulated_sum(simde__m512i x) {
  int32_t v[16], total = 0;
  memcpy(v, &x, 64);
  for (int i = 0; i < 16; i++) total += v[i];
  return total;
}
// A tree of vmaxps, as GCC and Clang build it.
static inline float emulated_largest(simde__m512 x) {
  __m256 half[2];
  halves_of(x, half);
  __m256 eight = _mm256_max_ps(half[0], half[1]);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#define _mm512_cvtepu8_epi32 emulated_cvtepu8
#define _mm512_cvtepi8_epi32 emulated_cvtepi8
#define _mm512_cvtepi32_ps emulated_to_float
#define _mm512_cvtps_epi32 emulated_to_int
#define _mm512_cvtps_pd emulated_to_double
#define _mm512_cvtph_ps emulated_from_half
#define _mm512_cvtps_ph(x, rounding) emulated_to_half(x)
#define _mm512_extractf32x8_ps emulated_extract
#define _mm512_cvtepi32_epi8 emulated_truncate<int8_t, __m128i>
#define _mm512_cvtepi32_epi16 emulated_truncate<int16_t, __m256i>
#define _mm512_sra_epi32 emulated_sra
#define _mm512_reduce_add_epi32 emulated_sum
#define _mm512_reduce_max_ps emulated_largest
