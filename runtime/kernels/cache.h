// Numbers of the KV cache: floats (float), floats of 16 bits (uint16_t), or levels of -127 to 127
// (int8_t) with a scale for each head of each position.

template <class T>
static const bool SCALED = sizeof(T) == 1;

// One key-value head of one row.
template <class T>
struct Cached {
  T *keys, *values;                  // [capacity / 16][D][16], [capacity][D]
  float *key_scales, *value_scales;  // [capacity], of levels
};

template <class T>
static inline Cached<T> cached_head(const AttentionTask& task, int64_t row, int64_t g) {
  int64_t at = (row * task.n_kv_head + g) * task.capacity;
  Cached<T> head = {(T*)task.keys + at * task.head_dim, (T*)task.values + at * task.head_dim, nullptr, nullptr};
  if (SCALED<T>) head.key_scales = task.key_scales + at, head.value_scales = task.value_scales + at;
  return head;
}

static inline F load_cached(const float* p) { return load(p); }
static inline F load_cached(const uint16_t* p) { return load_half(p); }
static inline F load_cached(const int8_t* p) { return to_float(load_signed(p)); }
// n numbers, and 0 in the lanes behind them.
template <class T>
static inline F load_cached(const T* p, int64_t n) {
  if (n >= 16) return load_cached(p);
  T v[16] = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return load_cached(v);
}

// Write the n numbers of a head `stride` apart; of levels, the scale to scales[at].
static inline void write_cached(float* p, const float* x, int64_t n, int64_t stride, float*, int64_t) {
  for (int64_t i = 0; i < n; i++) p[i * stride] = x[i];
}
static inline void write_cached(uint16_t* p, const float* x, int64_t n, int64_t stride, float*, int64_t) {
  for (int64_t i = 0; i < n; i += 16) {
    uint16_t v[16];
    store_half(v, load_some(x + i, n - i, 0));
    for (int64_t j = 0; j < least(16, n - i); j++) p[(i + j) * stride] = v[j];
  }
}
// The largest magnitude is level 127. A head of zeros and subnormals counts as zeros; the scale of a
// head with NaN or infinity is NaN.
static inline void write_cached(int8_t* p, const float* x, int64_t n, int64_t stride, float* scales,
                                int64_t at) {
  F top = all(0.0f), wrong = top;
  for (int64_t i = 0; i < n; i += 16) {
    F v = load_some(x + i, n - i, 0);
    top = max(abs(v), top);
    wrong = wrong + (v - v);
  }
  float peak = largest(top), bad = sum(wrong);
  bool empty = !(bad == 0) || peak < __FLT_MIN__;
  scales[at] = bad == 0 ? (empty ? 0.0f : peak / 127.0f) : bad;
  for (int64_t i = 0; i < n; i += 16) {
    int8_t levels[16];
    F v = load_some(x + i, n - i, 0) / all(peak) * all(127.0f);
    put(levels, to_int(empty ? all(0.0f) : v));
    for (int64_t j = 0; j < least(16, n - i); j++) p[(i + j) * stride] = levels[j];
  }
}
