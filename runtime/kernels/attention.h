// Attention of packed tokens over the cache of their rows.
//
// Keys lie in groups of 16 positions, so a lane is a key. A query sees the positions from `low` to
// its own. They are cut into pieces of PIECE positions, counted from position 0 of the row. In a
// piece, each score is one chain of fused multiply-adds over the dimensions, weights are added by
// lane and then as a tree, and each dimension of the values is one chain over the positions. The
// pieces are joined from the first to the last. Values of positions that a query does not see are
// not added to its sum. Queries share the reading of keys and values, which changes no sum.

static inline float inverse_norm(const float* x, int64_t n) {  // 1 / |x|, as in torch's normalized
  F total = all(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    F v = load_some(x + i, n - i, 0);
    total = fma(v, v, total);
  }
  return 1.0f / __builtin_sqrtf(sum(total) + 1e-12f);
}

static inline void turn(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += 16) {
    int64_t n = half - i;
    F c = load_some(cos + i, n, 0), s = load_some(sin + i, n, 0);
    F first = load_some(x + i, n, 0), second = load_some(x + half + i, n, 0);
    store_some(x + i, fma(all(0.0f) - second, s, first * c), n);
    store_some(x + half + i, fma(first, s, second * c), n);
  }
}

static inline void scale_by(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; i += 16) store_some(x + i, load_some(x + i, n - i, 0) * all(factor), n - i);
}

static inline F load_cached(const float* p) { return load(p); }
static inline F load_cached(const uint16_t* p) { return load_half(p); }
static inline F load_cached(const float* p, int64_t n) { return load_some(p, n, 0); }
static inline F load_cached(const uint16_t* p, int64_t n) {
  if (n >= 16) return load_half(p);
  uint16_t v[16] = {};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return load_half(v);
}
static inline void write_cached(float* p, const float* x, int64_t n, int64_t stride) {
  for (int64_t i = 0; i < n; i++) p[i * stride] = x[i];
}
static inline void write_cached(uint16_t* p, const float* x, int64_t n, int64_t stride) {
  for (int64_t i = 0; i < n; i += 16) {
    uint16_t v[16];
    store_half(v, load_some(x + i, n - i, 0));
    for (int64_t j = 0; j < least(16, n - i); j++) p[(i + j) * stride] = v[j];
  }
}

// The keys of a head are [capacity / 16][D][16], its values [capacity][D].
template <class T>
static inline T* head_of(const AttentionTask& task, void* cache, int64_t row, int64_t g) {
  return (T*)cache + (row * task.n_kv_head + g) * task.capacity * task.head_dim;
}

// Rotate queries and keys of a token, and write its keys and values to the cache.
template <class T>
static inline void place_token(AttentionTask& task, int64_t t) {
  const int64_t d = task.head_dim, heads = task.n_head, groups = task.n_kv_head, half = task.turned / 2;
  const float* qkv = task.qkv + t * (heads + 2 * groups) * d;
  int64_t at = task.places[t];
  const float *cos = task.cos + at * half, *sin = task.sin + at * half;
  for (int64_t h = 0; h < heads; h++) {
    float* q = task.queries + (t * heads + h) * d;
    __builtin_memcpy(q, qkv + h * d, d * sizeof(float));
    if (task.cos) turn(q, cos, sin, half);
    if (task.kind == DOT) scale_by(q, d, 1.0f / __builtin_sqrtf((float)d));
    if (task.kind == COSINE) {
      scale_by(q, d, inverse_norm(q, d));
      scale_by(q, d, task.score[h]);
    }
  }
  for (int64_t g = 0; g < groups; g++) {
    float key[1024];
    __builtin_memcpy(key, qkv + (heads + g) * d, d * sizeof(float));
    if (task.cos) turn(key, cos, sin, half);
    if (task.kind == COSINE) scale_by(key, d, inverse_norm(key, d));
    write_cached(head_of<T>(task, task.keys, task.rows[t], g) + at / 16 * 16 * d + at % 16, key, d, 16);
    write_cached(head_of<T>(task, task.values, task.rows[t], g) + at * d, qkv + (heads + groups + g) * d, d, 1);
  }
}

static void place(AttentionTask& task, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++) task.half ? place_token<uint16_t>(task, t) : place_token<float>(task, t);
}

static inline int64_t lowest(const AttentionTask& task, int64_t t) {
  int64_t low = task.window ? most(0, task.places[t] - task.window + 1) : 0;
  return most(low, task.starts[task.rows[t]]);
}

struct Query {
  const float* q;
  const float* score;  // additive attention
  int64_t low, high;   // the positions that it sees
  int64_t at;          // token * n_head + head
};

static const int SHARED = 6;  // queries that share the reading of keys and values, at most

// The scores of n queries for 16 keys, keys[D][16], of additive attention.
template <class T>
static void additive_scores(const AttentionTask& task, const Query* queries, int n, const T* keys, F* s) {
  for (int64_t k = 0; k < task.head_dim; k++) {
    F key = load_cached(keys + 16 * k);
    for (int i = 0; i < n; i++) s[i] = fma(all(queries[i].score[k]), tanh(all(queries[i].q[k]) + key), s[i]);
  }
}

// The same of dot and cosine attention.
template <int Q, class T>
static inline void scores(const AttentionTask& task, const Query* queries, const T* keys, F (&s)[Q]) {
  for (int i = 0; i < Q; i++) s[i] = all(0.0f);
  const float* q[Q];
  for (int i = 0; i < Q; i++) q[i] = queries[i].q;
  for (int64_t k = 0; k < task.head_dim; k++) {
    F key = load_cached(keys + 16 * k);
    for (int i = 0; i < Q; i++) s[i] = fma(all(q[i][k]), key, s[i]);
  }
}

// One piece for Q queries of one key-value head, each of which sees a position of it. A result is
// [D + 2]: the sum of values, the largest score, the sum of weights.
template <int Q, class T>
static void attend_piece(const AttentionTask& task, const T* keys, const T* values, int64_t start,
                         const Query* queries, float* results) {
  const int64_t d = task.head_dim, end = start + PIECE;
  float weights[Q][PIECE];
  int64_t low = queries[0].low, high = queries[0].high, all_from = low, all_to = high;
  for (int i = 1; i < Q; i++) {
    low = least(low, queries[i].low), high = most(high, queries[i].high);
    all_from = most(all_from, queries[i].low), all_to = least(all_to, queries[i].high);  // all see these
  }
  low = most(low, start), high = least(high, end - 1);
  all_from = least(most(all_from, low), high + 1), all_to = most(least(all_to, high), all_from - 1);
  const float ramp[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F lanes = load(ramp), hidden = all(-3e38f);
  F top[Q], total[Q];
  for (int i = 0; i < Q; i++) top[i] = hidden, total[i] = all(0.0f);
  for (int64_t at = low / 16 * 16; at <= high; at += 16) {
    F s[Q];
    if (task.kind == ADDITIVE) {
      for (int i = 0; i < Q; i++) s[i] = all(0.0f);
      additive_scores(task, queries, Q, keys + at * d, s);
    } else {
      scores<Q>(task, queries, keys + at * d, s);
    }
    for (int i = 0; i < Q; i++) {
      // lanes below `low` and above `high` may hold anything, NaN too
      s[i] = less(lanes, all((float)(queries[i].low - at)), hidden, s[i]);
      s[i] = less(all((float)(queries[i].high - at)), lanes, hidden, s[i]);
      top[i] = max(s[i], top[i]);
      store(weights[i] + (at - start), s[i]);
    }
  }
  for (int i = 0; i < Q; i++) {
    float peak = largest(top[i]);
    for (int64_t at = low / 16 * 16; at <= high; at += 16) {
      F s = load(weights[i] + (at - start));
      F weight = less(hidden, s, exp(s - all(peak)), all(0.0f));
      total[i] = total[i] + weight;
      store(weights[i] + (at - start), weight);
    }
    results[i * (d + 2) + d] = peak;
    results[i * (d + 2) + d + 1] = sum(total[i]);
  }
  for (int64_t k = 0; k < d; k += 16) {
    int64_t n = least(16, d - k);
    F y[Q];
    for (int i = 0; i < Q; i++) y[i] = all(0.0f);
    auto add_some = [&](int64_t from, int64_t to) {  // positions that only some queries see
      for (int64_t at = from; at < to; at++)
        for (int i = 0; i < Q; i++)
          if (queries[i].low <= at && at <= queries[i].high)
            y[i] = fma(all(weights[i][at - start]), load_cached(values + at * d + k, n), y[i]);
    };
    add_some(low, all_from);
    for (int64_t at = all_from; at <= all_to; at++) {
      F value = load_cached(values + at * d + k, n);
      for (int i = 0; i < Q; i++) y[i] = fma(all(weights[i][at - start]), value, y[i]);
    }
    add_some(all_to + 1, high + 1);
    for (int i = 0; i < Q; i++) store_some(results + i * (d + 2) + k, y[i], n);
  }
}

template <int Q, class T>
static inline void attend_some(const AttentionTask& task, const T* keys, const T* values, int64_t start,
                               const Query* queries, int n, float* results) {
  if (n == Q) return attend_piece<Q>(task, keys, values, start, queries, results);
  attend_some<(Q > 1 ? Q - 1 : 1)>(task, keys, values, start, queries, n, results);
}

// Add the piece `part` to what was joined so far, `values` [D] and `stats`: peak and total.
static inline void join_piece(float* values, float* stats, const float* part, int64_t d) {
  float peak = stats[0] > part[d] ? stats[0] : part[d];
  F old = exp(all(stats[0] - peak)), fresh = exp(all(part[d] - peak));
  for (int64_t k = 0; k < d; k += 16) {
    F y = fma(load_some(part + k, d - k, 0), fresh, load_some(values + k, d - k, 0) * old);
    store_some(values + k, y, d - k);
  }
  F total = fma(all(part[d + 1]), fresh, all(stats[1]) * old);
  stats[0] = peak;
  stats[1] = largest(total);
}

static inline void divide(float* values, float total, int64_t d) {
  for (int64_t k = 0; k < d; k += 16) store_some(values + k, load_some(values + k, d - k, 0) / all(total), d - k);
}

static inline bool sees(const Query& q, int64_t piece) { return q.low / PIECE <= piece && piece <= q.high / PIECE; }

// One piece for the queries that see it. Their sums go to `partials`, or are joined in `out`.
template <class T>
static inline void attend_queries(AttentionTask& task, int64_t row, int64_t g, int64_t piece, const Query* queries,
                                  int64_t n, float (*stats)[2]) {
  const int64_t d = task.head_dim;
  const T *keys = head_of<T>(task, task.keys, row, g), *values = head_of<T>(task, task.values, row, g);
  float results[SHARED * 1026];
  for (int64_t i = 0; i < n;) {
    Query seeing[SHARED];
    int64_t from[SHARED];
    int count = 0;
    for (; i < n && count < SHARED; i++)
      if (sees(queries[i], piece)) seeing[count] = queries[i], from[count++] = i;
    if (!count) return;
    attend_some<SHARED>(task, keys, values, piece * PIECE, seeing, count, results);
    for (int j = 0; j < count; j++) {
      const float* result = results + j * (d + 2);
      float *out = task.out + seeing[j].at * d, *joined = stats[from[j]];
      if (task.partials) {
        __builtin_memcpy(task.partials + (seeing[j].at * task.pieces + piece) * (d + 2), result, (d + 2) * sizeof(float));
      } else if (seeing[j].low / PIECE == piece) {
        __builtin_memcpy(out, result, d * sizeof(float));
        joined[0] = result[d], joined[1] = result[d + 1];
      } else {
        join_piece(out, joined, result, d);
      }
    }
  }
}

static const int64_t MOST_QUERIES = 48;  // of one key-value head that an item works on at a time

static void attend(AttentionTask& task, int64_t first, int64_t last) {
  const int64_t d = task.head_dim, groups = task.n_kv_head, in_group = task.n_head / groups;
  for (int64_t item = first; item < last; item++) {
    int64_t pair = task.partials ? item / task.pieces : item, g = pair % groups;
    const Run& run = task.runs[pair / groups];
    int64_t all_queries = run.count * in_group, row = task.rows[run.first];
    for (int64_t q0 = 0; q0 < all_queries; q0 += MOST_QUERIES) {
      Query queries[MOST_QUERIES];
      float stats[MOST_QUERIES][2];
      int64_t n = least(MOST_QUERIES, all_queries - q0), from = task.pieces, to = 0;
      for (int64_t i = 0; i < n; i++) {
        int64_t t = run.first + (q0 + i) / in_group, h = g * in_group + (q0 + i) % in_group, at = t * task.n_head + h;
        const float* score = task.kind == ADDITIVE ? task.score + h * d : nullptr;
        queries[i] = {task.queries + at * d, score, lowest(task, t), task.places[t], at};
        from = least(from, queries[i].low / PIECE), to = most(to, queries[i].high / PIECE);
      }
      if (task.partials) from = to = item % task.pieces;
      for (int64_t piece = from; piece <= to; piece++) {
        if (task.half) attend_queries<uint16_t>(task, row, g, piece, queries, n, stats);
        else attend_queries<float>(task, row, g, piece, queries, n, stats);
      }
      for (int64_t i = 0; !task.partials && i < n; i++) divide(task.out + queries[i].at * d, stats[i][1], d);
    }
  }
}

// Items (token, head): join the partials of their pieces.
static void join(AttentionTask& task, int64_t first, int64_t last) {
  const int64_t d = task.head_dim;
  for (int64_t item = first; item < last; item++) {
    int64_t t = item / task.n_head, from = lowest(task, t) / PIECE, to = task.places[t] / PIECE;
    const float* part = task.partials + (item * task.pieces + from) * (d + 2);
    float *out = task.out + item * d, stats[2] = {part[d], part[d + 1]};
    __builtin_memcpy(out, part, d * sizeof(float));
    for (int64_t p = from + 1; p <= to; p++) join_piece(out, stats, part + (p - from) * (d + 2), d);
    divide(out, stats[1], d);
  }
}
