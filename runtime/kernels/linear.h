// Products with packed weights: norm, rounding of activations, product, activation, residual.
//
// The order of sums: within a block integers are exact; over blocks each output is one chain of
// fused multiply-adds from the first block to the last. Nothing else is summed, so neither tokens,
// tiles, threads nor the width of a register change a bit.

static void normalize(const float* x, float* out, int64_t n, const Norm& norm) {
  if (norm.kind == NO_NORM) {
    for (int64_t i = 0; i < n; i += 16) store_some(out + i, load_some(x + i, n - i, 0), n - i);
    return;
  }
  F total = all(0.0f);
  float mean = 0;
  if (norm.kind == LAYER) {
    for (int64_t i = 0; i < n; i += 16) total = total + load_some(x + i, n - i, 0);
    mean = sum(total) / (float)n;
    total = all(0.0f);
  }
  for (int64_t i = 0; i < n; i += 16) {
    F d = load_some(x + i, n - i, mean) - all(mean);
    total = fma(d, d, total);
  }
  F size = all(1.0f / __builtin_sqrtf(sum(total) / (float)n + norm.epsilon));
  for (int64_t i = 0; i < n; i += 16) {
    F y = (load_some(x + i, n - i, mean) - all(mean)) * size;
    if (norm.gain) y = y * load_some(norm.gain + i, n - i, 0);
    if (norm.bias) y = y + load_some(norm.bias + i, n - i, 0);
    store_some(out + i, y, n - i);
  }
}

// Below this largest value 127 / largest could be infinite: the block counts as zeros.
static const float SMALLEST = 4e-37f;

// Round one block to levels of -127 to 127. Returns the scale; NaN if a value is not finite.
static inline float round_block(const float* x, int64_t n, int8_t* levels, int32_t* total) {
  F top = all(0.0f), wrong = all(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    F v = load(x + i);
    top = max(top, abs(v));
    wrong = wrong + (v - v);  // NaN for NaN and infinity
  }
  float peak = largest(top), bad = sum(wrong);
  bool empty = !(peak >= SMALLEST) || !(bad == 0);
  F step = all(empty ? 0.0f : 127.0f / peak);
  int32_t added = 0;
  for (int64_t i = 0; i < n; i += 16) {
    float whole_levels[16];
    store(whole_levels, empty ? all(0.0f) : whole(load(x + i) * step));
    for (int j = 0; j < 16; j++) {
      int32_t level = (int32_t)whole_levels[j];
      levels[i + j] = (int8_t)level;
      added += level;
    }
  }
  *total = added;
  return bad == 0 ? (empty ? 0.0f : peak / 127.0f) : bad;
}

static void prepare(LinearTask& task, int64_t first, int64_t last) {
  Input& in = task.input;
  const Weight& w = *task.weight;
  int64_t plane = in.tokens * in.width, blocks = in.tokens * w.n_blocks;
  for (int64_t t = first; t < last; t++) {
    float* x = in.floats + t * in.width;
    normalize(task.x + t * task.n_in, x, task.n_in, task.norm);
    for (int64_t i = task.n_in; i < in.width; i++) x[i] = 0;
    if (!in.terms) continue;
    for (int64_t b = 0; b < w.n_blocks; b++) {
      int64_t start = t * in.width + b * w.block, at = t * w.n_blocks + b;
      float scale = round_block(x + b * w.block, w.block, in.levels + start, in.sums + at);
      in.scales[at] = scale;
      if (in.terms < 2) continue;
      for (int64_t i = 0; i < w.block; i += 16) {  // what the first term leaves: at most half a step
        float levels[16];
        for (int j = 0; j < 16; j++) levels[j] = in.levels[start + i + j];
        F rest = load(x + b * w.block + i) - load(levels) * all(scale);
        F second = scale > 0 ? whole(rest * all(254.0f / scale)) : all(0.0f);
        store(levels, max(min(second, all(127.0f)), all(-127.0f)));
        for (int j = 0; j < 16; j++) in.levels[plane + start + i + j] = (int8_t)(int32_t)levels[j];
      }
      int32_t added = 0;
      for (int64_t i = 0; i < w.block; i++) added += in.levels[plane + start + i];
      in.sums[blocks + at] = added;
      in.scales[blocks + at] = scale / 254.0f;
    }
  }
}

static inline int32_t four_at(const int8_t* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

// Bytes ahead of the levels in use that a product of one token asks for. The processor's own
// prefetching stops at the end of each page.
static const int64_t AHEAD = 512;

// out[r][t] = the product of group g + r with token t0 + t, for R groups and T tokens.
template <int BITS, int R, int T>
static inline void tile(const Weight& w, const Input& in, int64_t g, int64_t t0, F (&out)[R][T]) {
  const int64_t steps = w.block / 4, bytes = w.block * (BITS == 4 ? 8 : 16);
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) out[r][t] = all(0.0f);
  for (int64_t b = 0; b < w.n_blocks; b++) {
    for (int term = 0; term < in.terms; term++) {
      const int8_t* a = in.levels + (term * in.tokens + t0) * in.width + b * w.block;
      I acc[R][T];
      for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) acc[r][t] = all((int32_t)0);
      for (int64_t k = 0; k < steps; k += BITS == 4 ? 2 : 1) {
        for (int r = 0; r < R; r++) {
          const int8_t* at = w.levels + ((g + r) * w.n_blocks + b) * bytes + (BITS == 4 ? k / 2 : k) * 64;
          if (T == 1) __builtin_prefetch(at + AHEAD);
          Bytes levels = load_levels(at);
          if (BITS == 8) {
            for (int t = 0; t < T; t++) acc[r][t] = dot(acc[r][t], levels, four_at(a + t * in.width + 4 * k));
          } else {
            Bytes even = low_halves(levels), odd = high_halves(levels);
            for (int t = 0; t < T; t++) {
              acc[r][t] = dot_small(acc[r][t], even, four_at(a + t * in.width + 4 * k));
              acc[r][t] = dot_small(acc[r][t], odd, four_at(a + t * in.width + 4 * k + 4));
            }
          }
        }
      }
      for (int r = 0; r < R; r++) {
        int64_t at = ((g + r) * w.n_blocks + b) * 16;
        F scale = load(w.scales + at);
        I zero = w.zeros ? load_bytes(w.zeros + at) : all((int32_t)(BITS == 4 ? 8 : 0));
        for (int t = 0; t < T; t++) {
          int64_t of = (term * in.tokens + t0 + t) * w.n_blocks + b;
          I whole_sum = acc[r][t];
          if (BITS == 4 || w.zeros) whole_sum = whole_sum - zero * all(in.sums[of]);
          out[r][t] = fma(to_float(whole_sum), scale * all(in.scales[of]), out[r][t]);
        }
      }
    }
  }
}

// The same with floats for activations; quantized weights are unpacked to floats.
template <int BITS, int R, int T>
static inline void float_tile(const Weight& w, const Input& in, int64_t g, int64_t t0, F (&out)[R][T]) {
  for (int r = 0; r < R; r++)
    for (int t = 0; t < T; t++) out[r][t] = all(0.0f);
  const float* x = in.floats + t0 * in.width;
  if (BITS == 32) {
    for (int64_t k = 0; k < w.n_in; k++)
      for (int r = 0; r < R; r++) {
        F v = load(w.floats + ((g + r) * w.n_in + k) * 16);
        for (int t = 0; t < T; t++) out[r][t] = fma(v, all(x[t * in.width + k]), out[r][t]);
      }
    return;
  }
  const int64_t bytes = w.block * (BITS == 4 ? 8 : 16);
  for (int64_t b = 0; b < w.n_blocks; b++)
    for (int r = 0; r < R; r++) {
      int64_t at = ((g + r) * w.n_blocks + b) * 16;
      F scale = load(w.scales + at);
      I zero = w.zeros ? load_bytes(w.zeros + at) : all((int32_t)(BITS == 4 ? 8 : 0));
      for (int64_t k = 0; k < w.block; k += 4) {
        const int8_t* from = w.levels + ((g + r) * w.n_blocks + b) * bytes + (BITS == 4 ? k / 8 : k / 4) * 64;
        Bytes levels = load_levels(from);
        if (BITS == 4) levels = k % 8 ? high_halves(levels) : low_halves(levels);
        for (int j = 0; j < 4; j++) {
          F v = to_float(pick(levels, j) - zero) * scale;
          for (int t = 0; t < T; t++)
            out[r][t] = fma(v, all(x[t * in.width + b * w.block + k + j]), out[r][t]);
        }
      }
    }
}

template <int R, int T>
static inline void product(const Weight& w, const Input& in, int64_t g, int64_t t, F (&out)[R][T]) {
  if (w.bits == 32) return float_tile<32, R, T>(w, in, g, t, out);
  if (w.bits == 8) return in.terms ? tile<8, R, T>(w, in, g, t, out) : float_tile<8, R, T>(w, in, g, t, out);
  return in.terms ? tile<4, R, T>(w, in, g, t, out) : float_tile<4, R, T>(w, in, g, t, out);
}

static inline F with_bias(const LinearTask& task, F y, int64_t column, int64_t n) {
  return task.bias ? y + load_some(task.bias + column, n, 0) : y;
}

template <int R, int T>
static inline void finish(LinearTask& task, int64_t g, int64_t t0, F (&y)[R][T]) {
  int64_t outputs = task.weight->n_out;
  for (int r = 0; r < R; r++) {
    int64_t column = (g + r) * 16, n = least(16, outputs - column);
    for (int t = 0; t < T; t++) {
      int64_t at = (t0 + t) * outputs + column;
      F v = activated(with_bias(task, y[r][t], column, n), task.activation);
      if (task.residual) v = v + load_some(task.residual + at, n, 0);
      store_some(task.out + at, v, n);
    }
  }
}

// Gated: group g is of the gate, group g + n_groups / 2 of the values that it multiplies.
template <int T>
static inline void gated(LinearTask& task, int64_t g, int64_t t0) {
  const Weight& w = *task.weight;
  int64_t outputs = w.n_out / 2, column = g * 16, n = least(16, outputs - column);
  F gate[1][T], up[1][T];
  product<1, T>(w, task.input, g, t0, gate);
  product<1, T>(w, task.input, g + w.n_groups / 2, t0, up);
  for (int t = 0; t < T; t++) {
    F first = activated(with_bias(task, gate[0][t], column, n), task.activation);
    F y = first * with_bias(task, up[0][t], outputs + column, n);
    int64_t at = (t0 + t) * outputs + column;
    if (task.residual) y = y + load_some(task.residual + at, n, 0);
    store_some(task.out + at, y, n);
  }
}

template <int R, int T>
static inline void plain_product(LinearTask& task, int64_t g, int64_t t) {
  F y[R][T];
  product<R, T>(*task.weight, task.input, g, t, y);
  finish<R, T>(task, g, t, y);
}

static void multiply(LinearTask& task, int64_t first, int64_t last) {
  int64_t tokens = task.input.tokens, g = first;
  if (task.gated) {
    for (; g < last; g++) {
      int64_t t = 0;
      for (; t + 4 <= tokens; t += 4) gated<4>(task, g, t);
      for (; t < tokens; t++) gated<1>(task, g, t);
    }
    return;
  }
  if (tokens < 3)
    for (; g + 2 <= last; g += 2)
      for (int64_t t = 0; t < tokens; t++) plain_product<2, 1>(task, g, t);
  for (; g < last; g++) {
    int64_t t = 0;
    for (; t + 6 <= tokens; t += 6) plain_product<1, 6>(task, g, t);
    for (; t + 3 <= tokens; t += 3) plain_product<1, 3>(task, g, t);
    for (; t < tokens; t++) plain_product<1, 1>(task, g, t);
  }
}
