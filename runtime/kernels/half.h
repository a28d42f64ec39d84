// A float of 16 bits as a float, which it always is exactly.
#pragma once
#include <stdint.h>

static inline float widened(uint16_t half) {
  uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = half >> 10 & 31, fraction = half & 1023, bits;
  if (exponent == 0) {  // zero or subnormal
    float size = (float)fraction * 0x1p-24f;
    return sign ? -size : size;
  }
  bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
