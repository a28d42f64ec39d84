// Bits of doubles, for doubles_*.h.
#pragma once

static const double SHIFTER = 0x1.8p52;  // a small number that is added to it becomes whole
static const int64_t ONE_BITS = 0x3ff0000000000000;   // of 1
static const int64_t ROOT_BITS = 0x3fe6a09e667f3bcd;  // of sqrt(1/2)
static const int64_t MANTISSA = 0x000fffffffffffff;   // those behind the exponent
static const int64_t POWER_BITS = 0x4330000000000000;  // of 2^52, whose last bit is 1
static const double POWER_BIAS = 0x1p52 + 1023;
