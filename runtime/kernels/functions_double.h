// exp and log of doubles, made of operations that every processor rounds alike.

static const double INFINITE = __builtin_inf();

// e^x to 1.1 units in the last place; 0 where the result would be subnormal. Taylor's series to
// r^13 / 13! for an r of at most ln(2) / 2: the rest is below 5e-18. Even and odd powers apart.
static inline Doubles exp(Doubles x) {
  Doubles shifted = fma(x, all(0x1.71547652b82fep0), all(SHIFTER));  // x / ln(2), rounded
  Doubles n = all(SHIFTER) - shifted;                                // minus that number
  Doubles r = fma(n, all(0x1.62e42fefa39efp-1), x);                  // ln(2)
  r = fma(n, all(0x1.abc9e3b39803fp-56), r);                         // and what it lacks
  Doubles s = r * r;
  Doubles even = fma(all(1.0 / 479001600), s, all(1.0 / 3628800));
  Doubles odd = fma(all(1.0 / 6227020800), s, all(1.0 / 39916800));
  even = fma(even, s, all(1.0 / 40320)), odd = fma(odd, s, all(1.0 / 362880));
  even = fma(even, s, all(1.0 / 720)), odd = fma(odd, s, all(1.0 / 5040));
  even = fma(even, s, all(1.0 / 24)), odd = fma(odd, s, all(1.0 / 120));
  even = fma(even, s, all(0.5)), odd = fma(odd, s, all(1.0 / 6));
  Doubles p = fma(fma(odd, r, even), s, r) + all(1.0);
  p = times_power_of_2(p, shifted);
  p = less(all(0x1.62e42fefa39efp9), x, all(INFINITE), p);  // 709.78
  return less(x, all(-0x1.6232bdd7abcd2p9), all(0.0), p);   // -708.40
}

// The logarithm to 1 unit in the last place. fdlibm's e_log.c: with x = 2^k (1 + f) and
// s = f / (2 + f), log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)).
static inline Doubles log(Doubles x) {
  const Doubles tiny = all(0x1p-1022), zero = all(0.0);
  Doubles k, m = split(less(x, tiny, x * all(0x1p54), x), &k);
  k = k - less(x, tiny, all(54.0), zero);
  Doubles f = m - all(1.0), s = f / (m + all(1.0)), half = all(0.5) * f * f, z = s * s, w = z * z;
  Doubles even = fma(all(1.531383769920937332e-01), w, all(2.222219843214978396e-01));
  Doubles odd = fma(all(1.479819860511658591e-01), w, all(1.818357216161805012e-01));
  even = fma(even, w, all(3.999999999940941908e-01)), odd = fma(odd, w, all(2.857142874366239149e-01));
  odd = fma(odd, w, all(6.666666666666735130e-01));
  Doubles low = fma(s, fma(fma(even, z, odd), z, half), k * all(1.90821492927058770002e-10)) - half;
  Doubles y = fma(k, all(6.93147180369123816490e-01), low + f);
  y = less(x, all(INFINITE), y, x);
  return less(zero, x, y, less(x, zero, all(__builtin_nan("")), all(-INFINITE) + x));
}
