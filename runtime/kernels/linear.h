// Products with packed weights: norm, rounding of activations, product, activation, residual.
//
// The order of sums: within a block integers are exact; over blocks each output is one chain of
// fused multiply-adds from the first block to the last (its sum, then its offset). Nothing else is
// summed, so neither tokens, tiles, threads nor the width of a register change a bit.

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

INLINE bool takes_levels(int form) { return form == EIGHT || form == TABLE; }  // else bytes
INLINE bool has_offsets(const Weight& w) { return w.offsets.steps || w.offsets.halves; }

// The number that all levels in a product are too large by. A block's sum starts from
// -common_zero * the sum of its activations.
INLINE int32_t common_zero(const Weight& w) {
  if (takes_levels(w.form)) return OFFSET;
  return w.zeros || has_offsets(w) ? 0 : w.form == FOUR ? 8 : w.form == FIVE ? 16 : 32;
}

// Round a block of token t to levels of -127 to 127, in one or two terms. LEVEL: how a level is
// stored. bad: 0, or NaN, which then is the scale.
template <class LEVEL>
static inline void round_block(const Weight& w, Input& in, int64_t t, int64_t b, float bad) {
  const float* x = in.floats + t * in.width + b * w.block;
  F top = all(0.0f);
  for (int64_t i = 0; i < w.block; i += 16) top = max(top, abs(load(x + i)));
  float peak = largest(top);
  bool empty = !(peak >= SMALLEST) || !(bad == 0);
  float scale = bad == 0 ? (empty ? 0.0f : peak / 127.0f) : bad;
  F step = all(empty ? 0.0f : 127.0f / peak), finer = all(scale > 0 ? 254.0f / scale : 0.0f);
  int64_t plane = in.tokens * in.width, at = b * in.tokens + t, planes = in.tokens * w.n_blocks;
  LEVEL* levels = (LEVEL*)in.levels + t * in.width + b * w.block;
  I added = all((int32_t)0), added2 = added;
  for (int64_t i = 0; i < w.block; i += 16) {
    F v = load(x + i), level = empty ? all(0.0f) : whole(v * step);
    put(levels + i, to_int(level));
    added = added + to_int(level);
    if (in.terms < 2) continue;
    // what the first term leaves: at most half a step
    F second = whole((v - level * all(scale)) * finer);
    second = scale > 0 ? max(min(second, all(127.0f)), all(-127.0f)) : all(0.0f);
    put(levels + plane + i, to_int(second));
    added2 = added2 + to_int(second);
  }
  for (int term = 0; term < in.terms; term++, at += planes) {
    int32_t whole_sum = total(term ? added2 : added);
    in.scales[at] = term ? scale / 254.0f : scale;
    in.sums[at] = (float)whole_sum;
    in.starts[at] = -common_zero(w) * whole_sum;
  }
}

static void prepare(LinearTask& task, int64_t first, int64_t last) {
  Input& in = task.input;
  const Weight& w = *task.weight;
  for (int64_t t = first; t < last; t++) {
    float* x = in.floats + t * in.width;
    normalize(task.x + t * task.n_in, x, task.n_in, task.norm);
    for (int64_t i = task.n_in; i < in.width; i++) x[i] = 0;
    if (!in.terms) continue;
    F wrong = all(0.0f);
    for (int64_t i = 0; i < in.width; i += 16) wrong = wrong + (load(x + i) - load(x + i));
    float bad = sum(wrong);  // NaN if a value of the token is NaN or infinite
    for (int64_t b = 0; b < w.n_blocks; b++) {
      if (takes_levels(w.form)) round_block<Level>(w, in, t, b, bad);
      else round_block<int8_t>(w, in, t, b, bad);
    }
  }
}

// Weights come from memory once, for the first tile of a group; a product of one token asks for
// those AHEAD bytes ahead. The processor's own prefetching stops at the end of each page. With more
// tokens, the tiles of a group together ask for the next group.
static const int64_t AHEAD = 512;

struct Tile {
  int64_t first;          // token
  int64_t number, count;  // of the tiles of all tokens
};

// Ask for this tile's share of `bytes` bytes.
INLINE void prefetch(const void* start, int64_t bytes, const Tile& tile) {
  for (int64_t at = tile.number * 64; at < bytes; at += tile.count * 64) __builtin_prefetch((const char*)start + at);
}

INLINE F scale_of(const Scales& s, int64_t g, int64_t b, int64_t n_blocks) {
  int64_t of_step = s.blocks_per_step == 1 ? b : s.n_steps == 1 ? 0 : b / s.blocks_per_step;
  int64_t at = (g * s.n_steps + of_step) * 16;
  F step = s.halves ? load_half(s.halves + at) : load(s.steps + at);
  return s.factors ? to_float(load_signed(s.factors + (g * n_blocks + b) * 16)) * step : step;
}

// The levels of the inputs k .. k + 8 of a group, k a multiple of 8.
template <int FORM>
INLINE void eight_levels(const Weight& w, const int8_t* group, int64_t k, Bytes& even, Bytes& odd) {
  Bytes both = load_levels(group + k * 8);
  even = bits_of<0, 15>(both), odd = bits_of<4, 15>(both);
  if (FORM == TABLE) even = look_up(w.table, even), odd = look_up(w.table, odd);
  if (FORM != FIVE && FORM != SIX) return;
  const int64_t in_byte = FORM == FIVE ? 8 : 4;  // levels whose high bits share a byte
  Bytes high = load_levels(group + w.n_blocks * w.block * 8 + k / (4 * in_byte) * 64);
  int shift = (int)(k / 4 % in_byte) * (FORM == FIVE ? 1 : 2);
  even = with_high(even, high, shift, FORM == FIVE ? 1 : 3);
  odd = with_high(odd, high, shift + (FORM == FIVE ? 1 : 2), FORM == FIVE ? 1 : 3);
}

// acc[r][t] += the sum of a block, from input k to `end`, for R groups and T tokens.
template <int FORM, int R, int T>
INLINE void block_sums(const Weight& w, const int8_t* group, const char* a, int64_t width, int64_t k,
                              int64_t end, I (&acc)[R][T]) {
  if (FORM == EIGHT) {
    for (; k < end; k += 4)
      UNROLLED(r, R) {
        const int8_t* at = group + r * w.group_bytes + k * 16;
        if (T == 1) __builtin_prefetch(at + AHEAD);
        Levels levels = spread(load_levels(at));
        UNROLLED(t, T) acc[r][t] = dot(acc[r][t], levels, (const Level*)a + t * width + k);
      }
  } else if (FORM == TABLE) {
    for (; k < end; k += 8)
      UNROLLED(r, R) {
        Bytes even, odd;
        eight_levels<FORM>(w, group + r * w.group_bytes, k, even, odd);
        Levels first = spread(even), second = spread(odd);
        UNROLLED(t, T) acc[r][t] = dot(acc[r][t], first, (const Level*)a + t * width + k);
        UNROLLED(t, T) acc[r][t] = dot(acc[r][t], second, (const Level*)a + t * width + k + 4);
      }
  } else {
    while (k < end) {
      int64_t stop = least(end, k + (FORM == FOUR ? 32 : FORM == FIVE ? 16 : 8));
      Small gathered[R][T];
      UNROLLED(r, R)
        UNROLLED(t, T) gathered[r][t] = small(acc[r][t]);
      for (; k < stop; k += 8)
        UNROLLED(r, R) {
          Bytes even, odd;
          if (T == 1) __builtin_prefetch(group + r * w.group_bytes + k * 8 + AHEAD);
          eight_levels<FORM>(w, group + r * w.group_bytes, k, even, odd);
          UNROLLED(t, T) gathered[r][t] = dot_small(gathered[r][t], even, (const int8_t*)a + t * width + k);
          UNROLLED(t, T) gathered[r][t] = dot_small(gathered[r][t], odd, (const int8_t*)a + t * width + k + 4);
        }
      UNROLLED(r, R)
        UNROLLED(t, T) acc[r][t] = add_small(acc[r][t], gathered[r][t]);
    }
  }
}

// out[r][t] = the product of group g + r with token at.first + t, for R groups and T tokens.
template <int FORM, int R, int T>
static void tile(const Weight& w, const Input& in, int64_t g, const Tile& at, F (&out)[R][T]) {
  const int64_t t0 = at.first, block_bytes = w.block * (FORM == EIGHT ? 16 : 8);
  const int64_t bytes = takes_levels(FORM) ? sizeof(Level) : 1, n_blocks = w.n_blocks, tokens = in.tokens;
  const bool offsets = has_offsets(w);
  F sums[R][T];
  UNROLLED(r, R)
    UNROLLED(t, T) sums[r][t] = all(0.0f);
  for (int64_t b = 0; b < n_blocks; b++)
    for (int term = 0; term < in.terms; term++) {
      const int8_t* groups = w.levels + g * w.group_bytes;
      if (T > 1) prefetch(groups + w.group_bytes + b * block_bytes, block_bytes, at);
      int64_t of = (term * n_blocks + b) * tokens + t0;
      const int32_t* starts = in.starts + of;
      const float *in_scales = in.scales + of, *in_sums = in.sums + of;
      const char* a = in.levels + (term * tokens + t0) * in.width * bytes;
      I acc[R][T];
      UNROLLED(r, R)
        UNROLLED(t, T) acc[r][t] = all(starts[t]);
      block_sums<FORM, R, T>(w, groups, a, in.width, b * w.block, (b + 1) * w.block, acc);
      UNROLLED(r, R) {
        F scale = scale_of(w.scales, g + r, b, n_blocks);
        if (w.zeros) {
          F zero = to_float(load_bytes(w.zeros + ((g + r) * n_blocks + b) * 16));
          UNROLLED(t, T) {  // whole numbers below 2^24: exact
            F sum = to_float(acc[r][t]) - zero * all(in_sums[t]);
            sums[r][t] = fma(sum, scale * all(in_scales[t]), sums[r][t]);
          }
          continue;
        }
        UNROLLED(t, T) sums[r][t] = fma(to_float(acc[r][t]), scale * all(in_scales[t]), sums[r][t]);
        if (!offsets) continue;
        F more = scale_of(w.offsets, g + r, b, n_blocks);
        UNROLLED(t, T) sums[r][t] = fma(more, all(in_scales[t] * in_sums[t]), sums[r][t]);
      }
    }
  UNROLLED(r, R)
    UNROLLED(t, T) out[r][t] = sums[r][t];
}

// The same with floats for activations; quantized weights become floats first.
template <int FORM, int R, int T>
static void float_tile(const Weight& w, const Input& in, int64_t g, const Tile& tile, F (&out)[R][T]) {
  F sums[R][T];
  UNROLLED(r, R)
    UNROLLED(t, T) sums[r][t] = all(0.0f);
  const int64_t n_in = w.n_in, width = in.width;
  const float *x = in.floats + tile.first * width, *floats = w.floats + g * n_in * 16;
  const uint16_t* halves = w.halves + g * n_in * 16;
  if (FORM == FLOATS || FORM == HALVES) {
    const int64_t bytes = FORM == FLOATS ? 64 : 32;  // of 16 weights
    const char* from = FORM == FLOATS ? (const char*)floats : (const char*)halves;
    for (int64_t k = 0; k < n_in; k++)
      UNROLLED(r, R) {
        if (T == 1) __builtin_prefetch(from + (r * n_in + k) * bytes + AHEAD);
        else if (k % 16 == 0) prefetch(from + (n_in + k) * bytes, 16 * bytes, tile);
        F v = FORM == FLOATS ? load(floats + (r * n_in + k) * 16) : load_half(halves + (r * n_in + k) * 16);
        UNROLLED(t, T) sums[r][t] = fma(v, all(x[t * width + k]), sums[r][t]);
      }
    UNROLLED(r, R)
      UNROLLED(t, T) out[r][t] = sums[r][t];
    return;
  }
  for (int64_t b = 0; b < w.n_blocks; b++)
    UNROLLED(r, R) {
      const int8_t* group = w.levels + (g + r) * w.group_bytes;
      F scale = scale_of(w.scales, g + r, b, w.n_blocks);
      F more = has_offsets(w) ? scale_of(w.offsets, g + r, b, w.n_blocks) : all(0.0f);
      I zero = w.zeros ? load_bytes(w.zeros + ((g + r) * w.n_blocks + b) * 16) : all(FORM == EIGHT || FORM == TABLE ? 0 : common_zero(w));
      for (int64_t k = b * w.block; k < (b + 1) * w.block; k += 8) {
        Bytes levels[2];
        if (FORM == EIGHT) levels[0] = load_levels(group + k * 16), levels[1] = load_levels(group + k * 16 + 64);
        else eight_levels<FORM>(w, group, k, levels[0], levels[1]);
        UNROLLED(j, 8) {
          F v = fma(to_float(pick(levels[j / 4], j % 4) - zero), scale, more);
          UNROLLED(t, T) sums[r][t] = fma(v, all(x[t * width + k + j]), sums[r][t]);
        }
      }
    }
  UNROLLED(r, R)
    UNROLLED(t, T) out[r][t] = sums[r][t];
}

template <int FORM, int R, int T>
static inline void product_of(const Weight& w, const Input& in, int64_t g, const Tile& tile_of, F (&out)[R][T]) {
  const bool small = FORM != EIGHT && FORM != TABLE;
  if (in.terms) {
    // multiply() makes no larger tiles of small weights
    if constexpr (!small || T <= SMALL_TILE) tile<FORM, R, T>(w, in, g, tile_of, out);
    return;
  }
  // Floats times quantized weights are rare, so their tiles have 1 or 4 tokens.
  if constexpr (T == 1 || T == 4) return float_tile<FORM, R, T>(w, in, g, tile_of, out);
  UNROLLED(t, T) {
    F one[R][1];
    float_tile<FORM, R, 1>(w, in, g, {tile_of.first + t, 0, 1}, one);
    UNROLLED(r, R) out[r][t] = one[r][0];
  }
}

template <int R, int T>
static inline void product(const Weight& w, const Input& in, int64_t g, const Tile& t, F (&out)[R][T]) {
  switch (w.form) {
    case EIGHT: return product_of<EIGHT, R, T>(w, in, g, t, out);
    case FOUR: return product_of<FOUR, R, T>(w, in, g, t, out);
    case FIVE: return product_of<FIVE, R, T>(w, in, g, t, out);
    case SIX: return product_of<SIX, R, T>(w, in, g, t, out);
    case TABLE: return product_of<TABLE, R, T>(w, in, g, t, out);
    case HALVES: return float_tile<HALVES, R, T>(w, in, g, t, out);
    default: return float_tile<FLOATS, R, T>(w, in, g, t, out);
  }
}

static inline F with_bias(const LinearTask& task, F y, int64_t column, int64_t n) {
  return task.bias ? y + load_some(task.bias + column, n, 0) : y;
}

template <int R, int T>
static inline void finish(LinearTask& task, int64_t g, int64_t t0, F (&y)[R][T]) {
  int64_t outputs = task.weight->n_out;
  UNROLLED(r, R) {
    int64_t column = (g + r) * 16, n = least(16, outputs - column);
    UNROLLED(t, T) {
      int64_t at = (t0 + t) * outputs + column;
      F v = with_bias(task, y[r][t], column, n);
      if (task.activation != NONE) v = activated(v, task.activation);
      if (task.factor) v = v * load_some(task.factor + at, n, 0);
      if (task.residual) v = v + load_some(task.residual + at, n, 0);
      store_some(task.out + at, v, n);
    }
  }
}

// Gated: group g is of the gate, group g + n_groups / 2 of the values that it multiplies.
template <int T>
static void gated(LinearTask& task, int64_t g, const Tile& tile) {
  const Weight& w = *task.weight;
  int64_t outputs = w.n_out / 2, column = g * 16, n = least(16, outputs - column);
  F gate[1][T], up[1][T];
  product<1, T>(w, task.input, g, tile, gate);
  product<1, T>(w, task.input, g + w.n_groups / 2, tile, up);
  UNROLLED(t, T) {
    F first = activated(with_bias(task, gate[0][t], column, n), task.activation);
    F y = first * with_bias(task, up[0][t], outputs + column, n);
    int64_t at = (tile.first + t) * outputs + column;
    if (task.residual) y = y + load_some(task.residual + at, n, 0);
    store_some(task.out + at, y, n);
  }
}

template <int R, int T>
static void plain_product(LinearTask& task, int64_t g, const Tile& tile) {
  F y[R][T];
  product<R, T>(*task.weight, task.input, g, tile, y);
  finish<R, T>(task, g, tile.first, y);
}

// Groups first .. last, with the T tokens of a tile.
template <int T>
static void groups_of(LinearTask& task, int64_t first, int64_t last, const Tile& tile) {
  int64_t g = first;
  if (task.gated)
    for (; g < last; g++) gated<T>(task, g, tile);
  if (T == 1)
    for (; g + 2 <= last; g += 2) plain_product<2, 1>(task, g, tile);
  for (; g < last; g++) plain_product<1, T>(task, g, tile);
}

// The same with n tokens, n <= T.
template <int T>
static void tokens_of(LinearTask& task, int64_t first, int64_t last, const Tile& tile, int64_t n) {
  if (n == T) return groups_of<T>(task, first, last, tile);
  tokens_of<(T > 1 ? T - 1 : 1)>(task, first, last, tile, n);
}

// Tiles of equal size, as few as TILE allows. A group's weights are read once for all tokens.
static void multiply(LinearTask& task, int64_t first, int64_t last) {
  int64_t tokens = task.input.tokens;
  const int form = task.weight->form;
  bool small = form == FOUR || form == FIVE || form == SIX;
  int64_t most_tokens = small ? SMALL_TILE : TILE;
  if (tokens == 1) return groups_of<1>(task, first, last, {0, 0, 1});
  int64_t count = (tokens + most_tokens - 1) / most_tokens;
  for (int64_t g = first; g < last; g++)
    for (int64_t i = 0; i < count; i++) {
      int64_t start = tokens * i / count, end = tokens * (i + 1) / count;
      tokens_of<TILE>(task, g, g + 1, {start, i, count}, end - start);
    }
}
