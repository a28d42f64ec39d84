// Sixteen lanes as four registers of NEON, with dot products where the compiler may use them.
#pragma once

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct Bytes { int8x16_t v[4]; };

#define EACH UNROLLED(i, 4)
static inline F load(const float* p) { F r; EACH r.v[i] = vld1q_f32(p + 4 * i); return r; }
static inline void store(float* p, F x) { EACH vst1q_f32(p + 4 * i, x.v[i]); }
static inline F all(float x) { F r; EACH r.v[i] = vdupq_n_f32(x); return r; }
static inline F operator+(F x, F y) { EACH x.v[i] = vaddq_f32(x.v[i], y.v[i]); return x; }
static inline F operator-(F x, F y) { EACH x.v[i] = vsubq_f32(x.v[i], y.v[i]); return x; }
static inline F operator*(F x, F y) { EACH x.v[i] = vmulq_f32(x.v[i], y.v[i]); return x; }
static inline F operator/(F x, F y) { EACH x.v[i] = vdivq_f32(x.v[i], y.v[i]); return x; }
static inline F fma(F x, F y, F z) { EACH z.v[i] = vfmaq_f32(z.v[i], x.v[i], y.v[i]); return z; }
// vmaxq and vminq differ from x86 for NaN and -0.
static inline F max(F x, F y) { EACH x.v[i] = vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]); return x; }
static inline F min(F x, F y) { EACH x.v[i] = vbslq_f32(vcltq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]); return x; }
static inline F abs(F x) { EACH x.v[i] = vabsq_f32(x.v[i]); return x; }
static inline F less(F x, F y, F yes, F no) {
  EACH no.v[i] = vbslq_f32(vcltq_f32(x.v[i], y.v[i]), yes.v[i], no.v[i]);
  return no;
}
static inline F whole(F x) { EACH x.v[i] = vrndnq_f32(x.v[i]); return x; }
static inline I to_int(F x) { I r; EACH r.v[i] = vcvtnq_s32_f32(x.v[i]); return r; }
static inline F to_float(I x) { F r; EACH r.v[i] = vcvtq_f32_s32(x.v[i]); return r; }
static inline F power_of_2(I n) {
  F r;
  EACH r.v[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.v[i], vdupq_n_s32(127)), 23));
  return r;
}
static inline I all(int32_t x) { I r; EACH r.v[i] = vdupq_n_s32(x); return r; }
static inline I operator+(I x, I y) { EACH x.v[i] = vaddq_s32(x.v[i], y.v[i]); return x; }
static inline I operator-(I x, I y) { EACH x.v[i] = vsubq_s32(x.v[i], y.v[i]); return x; }
static inline I operator*(I x, I y) { EACH x.v[i] = vmulq_s32(x.v[i], y.v[i]); return x; }
static inline float sum(F x) {
  float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
static inline float largest(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3]))); }
static inline int32_t total(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3]))); }
static inline I load_bytes(const uint8_t* p) {
  uint8x16_t b = vld1q_u8(p);
  uint16x8_t low = vmovl_u8(vget_low_u8(b)), high = vmovl_u8(vget_high_u8(b));
  return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
           vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
static inline I load_signed(const int8_t* p) {
  int8x16_t b = vld1q_s8(p);
  int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
           vmovl_s16(vget_high_s16(high))}};
}
static inline F load_half(const uint16_t* p) {
  F r;
  EACH r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
static inline void store_half(uint16_t* p, F x) {
  EACH vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
static inline Bytes load_levels(const int8_t* p) { Bytes r; EACH r.v[i] = vld1q_s8(p + 16 * i); return r; }
template <int SHIFT, int MASK>
static inline Bytes bits_of(Bytes w) {
  EACH {
    uint8x16_t v = vreinterpretq_u8_s8(w.v[i]);
    v = vandq_u8(vshlq_u8(v, vdupq_n_s8(-SHIFT)), vdupq_n_u8(MASK));
    w.v[i] = vreinterpretq_s8_u8(v);
  }
  return w;
}
static inline Bytes with_high(Bytes low, Bytes high, int shift, int mask) {
  EACH {
    uint8x16_t bits = vshlq_u8(vreinterpretq_u8_s8(high.v[i]), vdupq_n_s8((int8_t)-shift));
    bits = vshlq_n_u8(vandq_u8(bits, vdupq_n_u8((uint8_t)mask)), 4);
    low.v[i] = vorrq_s8(low.v[i], vreinterpretq_s8_u8(bits));
  }
  return low;
}
static inline Bytes look_up(const int8_t* table, Bytes w) {
  int8x16_t t = vld1q_s8(table);
  EACH w.v[i] = vqtbl1q_s8(t, vreinterpretq_u8_s8(w.v[i]));
  return w;
}
static inline I pick(Bytes w, int byte) {
  I r;
  EACH r.v[i] = vshrq_n_s32(vshlq_s32(vreinterpretq_s32_s8(w.v[i]), vdupq_n_s32(24 - 8 * byte)), 24);
  return r;
}

typedef int8_t Level;
typedef Bytes Levels;
static const int OFFSET = 0, TILE = 4, SMALL_TILE = 4;
static inline Levels spread(Bytes w) { return w; }
static inline void put(int8_t* p, I x) {
  int8x8_t low = vqmovn_s16(vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1])));
  int8x8_t high = vqmovn_s16(vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3])));
  vst1q_s8(p, vcombine_s8(low, high));
}
static inline I dot(I acc, const Levels& w, const Level* a) {
  int32_t four;
  __builtin_memcpy(&four, a, 4);
  int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
#ifdef __ARM_FEATURE_DOTPROD
  EACH acc.v[i] = vdotq_s32(acc.v[i], w.v[i], v);
#else
  EACH {  // two products of at most 128 * 127 fit into 16 bits
    int16x8_t low = vmull_s8(vget_low_s8(w.v[i]), vget_low_s8(v));
    int16x8_t high = vmull_s8(vget_high_s8(w.v[i]), vget_high_s8(v));
    acc.v[i] = vpadalq_s16(acc.v[i], vpaddq_s16(low, high));
  }
#endif
  return acc;
}
typedef I Small;
static inline Small small(I acc) { return acc; }
static inline Small dot_small(Small acc, Bytes w, const int8_t* a) { return dot(acc, w, a); }
static inline I add_small(I, Small sum) { return sum; }
#undef EACH
