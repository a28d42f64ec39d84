// The instruction of AVX-VNNI for a processor that has AVX2 alone. kernel_bits.py puts this file
// before kernels_avxvnni.cpp.
#pragma once
#include <immintrin.h>

// sum + the products of four unsigned bytes of `w` and four signed bytes of `a`, in each lane.
static inline __m256i emulated_dpbusd(__m256i sum, __m256i w, __m256i a) {
  __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
  __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd
