// Sixteen lanes as one register of AVX-512 (F, BW, DQ, VL), with VNNI where GPTX_VNNI is defined.
#pragma once

struct F { __m512 a; };
// Of ints, as the compiler would move a __m512i to another register for each product and back.
typedef int Ints __attribute__((vector_size(64)));
struct I { Ints a; };
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
static inline I to_int(F x) { return {(Ints)_mm512_cvtps_epi32(x.a)}; }
static inline F to_float(I x) { return {_mm512_cvtepi32_ps((__m512i)x.a)}; }
static inline F power_of_2(I n) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32((__m512i)n.a, _mm512_set1_epi32(127)), 23))};
}
static inline I all(int32_t x) { return {(Ints)_mm512_set1_epi32(x)}; }
static inline I operator+(I x, I y) { return {x.a + y.a}; }
static inline I operator-(I x, I y) { return {x.a - y.a}; }
static inline I operator*(I x, I y) { return {x.a * y.a}; }
static inline float sum(F x) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.a), _mm512_extractf32x8_ps(x.a, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float largest(F x) { return _mm512_reduce_max_ps(x.a); }
static inline int32_t total(I x) { return _mm512_reduce_add_epi32((__m512i)x.a); }
static inline I load_bytes(const uint8_t* p) { return {(Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline I load_signed(const int8_t* p) { return {(Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
static inline F load_half(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
static inline void store_half(uint16_t* p, F x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
}
static inline Bytes load_levels(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int SHIFT, int MASK>
static inline Bytes bits_of(Bytes w) {
  return {_mm512_and_si512(_mm512_srli_epi16(w.a, SHIFT), _mm512_set1_epi8(MASK))};
}
static inline Bytes with_high(Bytes low, Bytes high, int shift, int mask) {
  __m512i bits = _mm512_and_si512(_mm512_srl_epi16(high.a, _mm_cvtsi32_si128(shift)), _mm512_set1_epi8((char)mask));
  return {_mm512_or_si512(low.a, _mm512_slli_epi16(bits, 4))};
}
static inline Bytes look_up(const int8_t* table, Bytes w) {
  __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
  return {_mm512_shuffle_epi8(t, w.a)};
}
static inline I pick(Bytes w, int byte) {
  __m128i left = _mm_cvtsi32_si128(24 - 8 * byte), right = _mm_cvtsi32_si128(24);
  return {(Ints)_mm512_sra_epi32(_mm512_sll_epi32(w.a, left), right)};
}
static inline __m512i broadcast(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
static inline void put(int8_t* p, I levels) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)levels.a)); }

#ifdef GPTX_VNNI
// A sum of products takes 5 cycles, so 6 tokens take as long as 8. More lack registers.
static const int TILE = 8, SMALL_TILE = 8;
// The instruction takes unsigned weights: 128 is added to each, and taken back from the sum.
typedef int8_t Level;
typedef Bytes Levels;
static const int OFFSET = 128;
static inline Levels spread(Bytes w) { return {_mm512_xor_si512(w.a, _mm512_set1_epi8(-128))}; }
static inline I dot(I acc, const Levels& w, const Level* a) { return {(Ints)_mm512_dpbusd_epi32((__m512i)acc.a, w.a, broadcast(a))}; }

typedef I Small;
static inline Small small(I acc) { return acc; }
static inline Small dot_small(Small acc, Bytes w, const int8_t* a) { return {(Ints)_mm512_dpbusd_epi32((__m512i)acc.a, w.a, broadcast(a))}; }
static inline I add_small(I, Small sum) { return sum; }
#else
static const int TILE = 6, SMALL_TILE = 6;
// As with AVX2: weights of 8 bits are widened to 16 bits, smaller ones are added in 16 bits.
typedef int16_t Level;
struct Levels { __m512i even, odd; };
static const int OFFSET = 0;
static inline Levels spread(Bytes w) {
  return {_mm512_srai_epi16(_mm512_slli_epi16(w.a, 8), 8), _mm512_srai_epi16(w.a, 8)};
}
static inline void put(Level* p, I levels) {
  __m256i v = _mm512_cvtepi32_epi16((__m512i)levels.a);
  _mm256_storeu_si256((__m256i*)p, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(v, 0xd8), 0xd8));
}
static inline I dot(I acc, const Levels& w, const Level* a) {
  Ints sum = acc.a + (Ints)_mm512_madd_epi16(w.even, broadcast(a));
  return {sum + (Ints)_mm512_madd_epi16(w.odd, broadcast(a + 2))};
}

struct Small { __m512i a; };
static inline Small small(I) { return {_mm512_setzero_si512()}; }
static inline Small dot_small(Small acc, Bytes w, const int8_t* a) {
  return {_mm512_add_epi16(acc.a, _mm512_maddubs_epi16(w.a, broadcast(a)))};
}
static inline I add_small(I acc, Small sum) {
  return {acc.a + (Ints)_mm512_madd_epi16(sum.a, _mm512_set1_epi16(1))};
}
#endif
