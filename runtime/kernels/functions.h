// exp, tanh and erf, made of operations that every processor rounds alike.

// n floats, n <= 16, and `rest` in the other lanes.
static inline F load_some(const float* p, int64_t n, float rest) {
  if (n >= 16) return load(p);
  float v[16];
  for (int i = 0; i < 16; i++) v[i] = i < n ? p[i] : rest;
  return load(v);
}

static inline void store_some(float* p, F x, int64_t n) {
  if (n >= 16) return store(p, x);
  float v[16];
  store(v, x);
  for (int i = 0; i < n; i++) p[i] = v[i];
}

// e^x to 2 units in the last place; 0 below -87, e^88 above 88. Cephes' polynomial (expf.c), 10
// operations.
static inline F exp(F x) {
  F inside = max(min(x, all(88.0f)), all(-87.0f));
  F n = whole(inside * all(1.44269504f));
  F r = fma(n, all(-0.693359375f), inside);
  r = fma(n, all(2.12194440e-4f), r);
  F p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r + all(1.0f));
  return less(x, all(-87.0f), all(0.0f), p * power_of_2(to_int(n)));
}

// 1 - 2 / (e^2x + 1): to 1e-7.
static inline F tanh(F x) { return all(1.0f) - all(2.0f) / (exp(x + x) + all(1.0f)); }

// erf to 1 unit in the last place: a polynomial for small x, 1 - e^-p(x) for others, both by
// N. Juffa (https://stackoverflow.com/a/35148199).
static inline F erf(F x) {
  F t = abs(x), s = x * x;
  F r = fma(all(-1.72853470e-5f), t, all(3.83197126e-4f));
  F u = fma(all(-3.88396438e-3f), t, all(2.42546219e-2f));
  r = fma(r, s, u);
  r = fma(r, t, all(-1.06777877e-1f));
  r = fma(r, t, all(-6.34846687e-1f));
  r = fma(r, t, all(-1.28717512e-1f));
  r = fma(r, t, all(0.0f) - t);
  r = all(1.0f) - exp(r);
  F large = less(x, all(0.0f), all(0.0f) - r, r);
  F p = all(-5.96761703e-4f);
  p = fma(p, s, all(4.99119423e-3f));
  p = fma(p, s, all(-2.67681349e-2f));
  p = fma(p, s, all(1.12819925e-1f));
  p = fma(p, s, all(-3.76125336e-1f));
  p = fma(p, s, all(1.28379166e-1f));
  return less(t, all(0.927734375f), fma(p, x, x), large);
}

// Not inlined: it would be compiled a dozen times.
__attribute__((noinline)) static F activated(F x, int activation) {
  switch (activation) {
    case RELU: return max(x, all(0.0f));
    case GELU: return x * all(0.5f) * (all(1.0f) + erf(x * all(0.70710678f)));
    case GELU_TANH: {
      F inner = all(0.79788456f) * fma(x * x * x, all(0.044715f), x);
      return x * all(0.5f) * (all(1.0f) + tanh(inner));
    }
    case SILU: return x / (all(1.0f) + exp(all(0.0f) - x));
    default: return x;
  }
}
