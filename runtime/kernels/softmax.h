// The weights and the logsumexp of a row of logits, and exp and log of doubles.
//
// A sum has 16 lanes of doubles: number i is added to lane i % 16. Then the lanes are added as a
// tree: 8 + 8, 4 + 4, 2 + 2, 1 + 1.

static const int REGISTERS = 16 / WIDTH;  // of 16 lanes
// GCC would keep the registers of a loop in memory.
#define EACH _Pragma("GCC unroll 16") for (int j = 0; j < REGISTERS; j++)

// The 16 numbers from x[i] on, with `rest` in the places behind x[n]. padded: room for them.
template <class T>
static inline const T* sixteen(const T* x, int64_t i, int64_t n, T rest, T* padded) {
  if (i + 16 <= n) return x + i;
  for (int j = 0; j < 16; j++) padded[j] = i + j < n ? x[i + j] : rest;
  return padded;
}

struct Lanes {
  Doubles at[REGISTERS];
  explicit Lanes(double x) { for (Doubles& one : at) one = all(x); }
  double sum() const {
    double v[16];
    EACH store(v + j * WIDTH, at[j]);
    for (int width = 8; width; width /= 2)
      for (int j = 0; j < width; j++) v[j] += v[j + width];
    return v[0];
  }
  double largest() const {
    double v[16];
    EACH store(v + j * WIDTH, at[j]);
    for (double one : v) v[0] = one > v[0] ? one : v[0];
    return v[0];
  }
};

// The weights of n logits, n a multiple of 16. The second loop reads them from the L1 cache.
INLINE void weigh_sixteens(const float* x, int64_t n, F top, F scale, float* out, Lanes& total) {
  for (int64_t i = 0; i < n; i += 16) store(out + i, exp((load(x + i) - top) * scale));
  for (int64_t i = 0; i < n; i += 16) EACH total.at[j] = total.at[j] + wide(out + i + j * WIDTH);
}

// out[i] = exp((x[i] - top) * scale), 0 below e^-87; returns their sum. `out` may be x.
static double exp_weights(const float* x, int64_t n, float top, float scale, float* out) {
  const int64_t at_once = 1024, whole = n / 16 * 16;
  Lanes total(0.0);
  for (int64_t i = 0; i < whole; i += at_once)
    weigh_sixteens(x + i, least(at_once, whole - i), all(top), all(scale), out + i, total);
  float padded[16];
  const float* last = sixteen(x, whole, n, (float)-INFINITE, padded);
  weigh_sixteens(last, 16, all(top), all(scale), padded, total);
  for (int64_t i = whole; i < n; i++) out[i] = padded[i - whole];
  return total.sum();
}

// log(sum(exp(x))). NaN if a number is NaN; infinity or -infinity if the largest number is.
template <class T>
static double logsumexp(const T* x, int64_t n) {
  const T rest = (T)-INFINITE;
  T padded[16];
  Lanes tops(-INFINITE);  // they pass NaN over: the sum below has it
  for (int64_t i = 0; i < n; i += 16) {
    const T* p = sixteen(x, i, n, rest, padded);
    EACH {
      Doubles one = wide(p + j * WIDTH);
      tops.at[j] = less(tops.at[j], one, one, tops.at[j]);
    }
  }
  double top = tops.largest(), shift = top - top == 0 ? top : 0.0;
  Lanes total(0.0);
  for (int64_t i = 0; i < n; i += 16) {
    const T* p = sixteen(x, i, n, rest, padded);
    EACH total.at[j] = total.at[j] + exp(wide(p + j * WIDTH) - all(shift));
  }
  double v[WIDTH];
  store(v, log(all(total.sum())));
  return shift + v[0];
}

// out[i] = FUNCTION(x[i]). `out` may be x.
template <Doubles (*FUNCTION)(Doubles)>
static void on_each(const double* x, int64_t n, double* out) {
  double padded[16];
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) store(out + i, FUNCTION(wide(x + i)));
  store(padded, FUNCTION(wide(sixteen(x, i, n, 0.0, padded))));
  for (int64_t j = 0; j < n - i; j++) out[i + j] = padded[j];
}
#undef EACH
