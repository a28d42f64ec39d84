// Sixteen lanes as two registers of AVX2, with FMA, and with VNNI where GPTX_VNNI is defined.
#pragma once

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct Bytes { __m256i a, b; };

static inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
static inline F all(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
static inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
static inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline F abs(F x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline F less(F x, F y, F yes, F no) {
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
static inline F whole(F x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
static inline F power_of_2(I n) {
  __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
}
static inline I all(int32_t x) { __m256i v = _mm256_set1_epi32(x); return {v, v}; }
static inline I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline I operator-(I x, I y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline I operator*(I x, I y) { return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)}; }
static inline float sum(F x) {
  __m256 eight = _mm256_add_ps(x.a, x.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline float largest(F x) {
  __m256 eight = _mm256_max_ps(x.a, x.b);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline int32_t total(I x) {
  __m256i eight = _mm256_add_epi32(x.a, x.b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
static inline I load_bytes(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
static inline I load_signed(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))};
}
static inline F load_half(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
static inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
static inline Bytes load_levels(const int8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
template <int SHIFT, int MASK>
static inline Bytes bits_of(Bytes w) {
  __m256i m = _mm256_set1_epi8(MASK);
  return {_mm256_and_si256(_mm256_srli_epi16(w.a, SHIFT), m), _mm256_and_si256(_mm256_srli_epi16(w.b, SHIFT), m)};
}
static inline Bytes with_high(Bytes low, Bytes high, int shift, int mask) {
  __m128i n = _mm_cvtsi32_si128(shift);
  __m256i m = _mm256_set1_epi8((char)mask);
  __m256i a = _mm256_and_si256(_mm256_srl_epi16(high.a, n), m), b = _mm256_and_si256(_mm256_srl_epi16(high.b, n), m);
  return {_mm256_or_si256(low.a, _mm256_slli_epi16(a, 4)), _mm256_or_si256(low.b, _mm256_slli_epi16(b, 4))};
}
static inline Bytes look_up(const int8_t* table, Bytes w) {
  __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return {_mm256_shuffle_epi8(t, w.a), _mm256_shuffle_epi8(t, w.b)};
}
static inline I pick(Bytes w, int byte) {
  __m128i left = _mm_cvtsi32_si128(24 - 8 * byte), right = _mm_cvtsi32_si128(24);
  return {_mm256_sra_epi32(_mm256_sll_epi32(w.a, left), right),
          _mm256_sra_epi32(_mm256_sll_epi32(w.b, left), right)};
}

static inline __m256i in_16_bits(I x) {  // 16 levels in their order
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
}
static inline void put(int8_t* p, I levels) {
  __m256i v = in_16_bits(levels);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
static inline __m256i broadcast(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
// Pins two sums. GCC would move them to other registers and back, or add products to one another
// before it adds them to the sums, and run out of registers.
static inline void keep(__m256i& a, __m256i& b) { __asm__("" : "+x"(a), "+x"(b)); }

#ifdef GPTX_VNNI
static const int TILE = 6, SMALL_TILE = 6;
// The instruction takes unsigned weights: 128 is added to each, and taken back from the sum.
typedef int8_t Level;
typedef Bytes Levels;
static const int OFFSET = 128;
static inline Levels spread(Bytes w) {
  __m256i top = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(w.a, top), _mm256_xor_si256(w.b, top)};
}
static inline I dot(I acc, const Levels& w, const Level* a) {
  __m256i v = broadcast(a);
  acc = {_mm256_dpbusd_avx_epi32(acc.a, w.a, v), _mm256_dpbusd_avx_epi32(acc.b, w.b, v)};
  keep(acc.a, acc.b);
  return acc;
}

typedef I Small;
static inline Small small(I acc) { return acc; }
static inline Small dot_small(Small acc, Bytes w, const int8_t* a) { return dot(acc, w, a); }
static inline I add_small(I, Small sum) { return sum; }
#else
// AVX2's product of bytes adds pairs in 16 bits, where weights of 8 bits overflow. So these are
// widened to 16 bits: bytes 0 and 2 of each lane are `even`, bytes 1 and 3 are `odd`. Activations
// are stored in that order, in 16 bits.
typedef int16_t Level;
struct Levels { __m256i even_a, odd_a, even_b, odd_b; };
static const int OFFSET = 0, TILE = 6, SMALL_TILE = 4;
static inline Levels spread(Bytes w) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(w.a, 8), 8), _mm256_srai_epi16(w.a, 8),
          _mm256_srai_epi16(_mm256_slli_epi16(w.b, 8), 8), _mm256_srai_epi16(w.b, 8)};
}
static inline void put(Level* p, I levels) {
  __m256i v = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(in_16_bits(levels), 0xd8), 0xd8);
  _mm256_storeu_si256((__m256i*)p, v);
}
static inline I dot(I acc, const Levels& w, const Level* a) {
  __m256i v = broadcast(a);
  acc = {_mm256_add_epi32(acc.a, _mm256_madd_epi16(w.even_a, v)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.even_b, v))};
  keep(acc.a, acc.b);
  v = broadcast(a + 2);
  acc = {_mm256_add_epi32(acc.a, _mm256_madd_epi16(w.odd_a, v)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(w.odd_b, v))};
  keep(acc.a, acc.b);
  return acc;
}
// Weights of 4 bits times 127, of 16 pairs of inputs: at most 30480, which fits into 16 bits.
struct Small { __m256i a, b; };
static inline Small small(I) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
static inline Small dot_small(Small acc, Bytes w, const int8_t* a) {
  __m256i v = broadcast(a);
  acc = {_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(w.a, v)), _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(w.b, v))};
  keep(acc.a, acc.b);
  return acc;
}
static inline I add_small(I acc, Small sum) {
  __m256i one = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(sum.a, one)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(sum.b, one))};
}
#endif
