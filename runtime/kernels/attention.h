// Attention of packed tokens over the cache of their rows.
//
// Keys lie in groups of 16 positions, so a lane is a key. A query sees the positions from `low` to
// its own. They are cut into pieces of PIECE positions, counted from position 0 of the row. In a
// piece, each score is one chain of fused multiply-adds over the dimensions, weights are added by
// lane and then as a tree, and each dimension of the values is one chain over the positions. The
// pieces are joined from the first to the last. Positions that a query does not see have weight 0,
// and values that no query sees are never read.

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

// Tokens first .. last: rotate queries and keys, and write keys and values to the cache.
static void place(AttentionTask& task, int64_t first, int64_t last) {
  const int64_t d = task.head_dim, heads = task.n_head, groups = task.n_kv_head, half = task.turned / 2;
  for (int64_t t = first; t < last; t++) {
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
      int64_t head = (task.rows[t] * groups + g) * task.capacity * d;
      float* keys = task.keys + head + at / 16 * 16 * d + at % 16;
      for (int64_t i = 0; i < d; i++) keys[16 * i] = key[i];
      __builtin_memcpy(task.values + head + at * d, qkv + (heads + groups + g) * d, d * sizeof(float));
    }
  }
}

static inline int64_t lowest(const AttentionTask& task, int64_t t) {
  int64_t low = task.window ? most(0, task.places[t] - task.window + 1) : 0;
  return task.starts ? most(low, task.starts[task.rows[t]]) : low;
}

struct Query {
  const float* q;
  const float* score;  // additive attention
  int64_t low, high;   // the positions that it sees
  float* out;          // [D + 2]: sums of values, the largest score, the sum of weights
};

// The scores of Q queries for 16 keys, keys[D][16].
template <int Q>
static inline void scores(const AttentionTask& task, const Query* queries, const float* keys, F (&s)[Q]) {
  for (int i = 0; i < Q; i++) s[i] = all(0.0f);
  for (int64_t k = 0; k < task.head_dim; k++) {
    F key = load(keys + 16 * k);
    for (int i = 0; i < Q; i++)
      s[i] = task.kind == ADDITIVE ? fma(all(queries[i].score[k]), tanh(all(queries[i].q[k]) + key), s[i])
                                   : fma(all(queries[i].q[k]), key, s[i]);
  }
}

// One piece for Q queries of one key-value head. Each must see a position of the piece.
template <int Q>
static inline void attend_piece(const AttentionTask& task, const float* keys, const float* values,
                                int64_t start, const Query* queries) {
  float weights[Q][PIECE];
  int64_t low = queries[0].low, high = queries[0].high;
  for (int i = 1; i < Q; i++) low = least(low, queries[i].low), high = most(high, queries[i].high);
  low = most(low, start), high = least(high, start + PIECE - 1);
  const float ramp[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F lanes = load(ramp), hidden = all(-3e38f);
  F top[Q], total[Q];
  for (int i = 0; i < Q; i++) top[i] = hidden, total[i] = all(0.0f);
  for (int64_t at = low / 16 * 16; at <= high; at += 16) {
    F s[Q];
    scores<Q>(task, queries, keys + at * task.head_dim, s);
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
    queries[i].out[task.head_dim] = peak;
    queries[i].out[task.head_dim + 1] = sum(total[i]);
  }
  for (int64_t k = 0; k < task.head_dim; k += 16) {
    int64_t n = least(16, task.head_dim - k);
    F y[Q];
    for (int i = 0; i < Q; i++) y[i] = all(0.0f);
    for (int64_t at = low; at <= high; at++) {
      F value = load_some(values + at * task.head_dim + k, n, 0);
      for (int i = 0; i < Q; i++) y[i] = fma(all(weights[i][at - start]), value, y[i]);
    }
    for (int i = 0; i < Q; i++) store_some(queries[i].out + k, y[i], n);
  }
}

static inline void piece_of(const AttentionTask& task, int64_t row, int64_t g, int64_t piece,
                            const Query* queries, int n) {
  int64_t head = (row * task.n_kv_head + g) * task.capacity * task.head_dim;
  const float *keys = task.keys + head, *values = task.values + head;
  int64_t start = piece * PIECE;
  int i = 0;
  for (; i + 4 <= n; i += 4) attend_piece<4>(task, keys, values, start, queries + i);
  for (; i + 2 <= n; i += 2) attend_piece<2>(task, keys, values, start, queries + i);
  for (; i < n; i++) attend_piece<1>(task, keys, values, start, queries + i);
}

// Add the piece `part` to what was joined so far: both are [D + 2], as in Query::out.
static inline void join_piece(float* so_far, const float* part, int64_t d) {
  float peak = so_far[d] > part[d] ? so_far[d] : part[d];
  F old = exp(all(so_far[d] - peak)), fresh = exp(all(part[d] - peak));
  for (int64_t k = 0; k < d; k += 16) {
    F y = fma(load_some(part + k, d - k, 0), fresh, load_some(so_far + k, d - k, 0) * old);
    store_some(so_far + k, y, d - k);
  }
  F total = fma(all(part[d + 1]), fresh, all(so_far[d + 1]) * old);
  so_far[d] = peak;
  so_far[d + 1] = largest(total);
}

static inline void write_result(const AttentionTask& task, int64_t t, int64_t h, const float* joined) {
  int64_t d = task.head_dim;
  float* out = task.out + (t * task.n_head + h) * d;
  F total = all(joined[d + 1]);
  for (int64_t k = 0; k < d; k += 16) store_some(out + k, load_some(joined + k, d - k, 0) / total, d - k);
}

static inline Query query_of(const AttentionTask& task, int64_t t, int64_t h, float* out) {
  int64_t d = task.head_dim;
  const float* score = task.kind == ADDITIVE ? task.score + h * d : nullptr;
  return {task.queries + (t * task.n_head + h) * d, score, lowest(task, t), task.places[t], out};
}

// Without `partials`, an item is (token, key-value head): all pieces, joined at once. With it, an
// item is (token, key-value head, piece), and `join` follows.
static void attend(AttentionTask& task, int64_t first, int64_t last) {
  const int64_t d = task.head_dim, groups = task.n_kv_head, in_group = task.n_head / groups;
  for (int64_t item = first; item < last; item++) {
    int64_t piece = task.partials ? item % task.pieces : 0;
    int64_t pair = task.partials ? item / task.pieces : item, t = pair / groups, g = pair % groups;
    int64_t low = lowest(task, t), from = low / PIECE, to = task.places[t] / PIECE;
    for (int64_t h0 = 0; h0 < in_group; h0 += 8) {
      int n = (int)least(8, in_group - h0);
      Query queries[8];
      float local[8][1026], joined[8][1026];
      for (int i = 0; i < n; i++) {
        int64_t h = g * in_group + h0 + i;
        float* out = task.partials ? task.partials + ((t * task.n_head + h) * task.pieces + piece) * (d + 2)
                                   : local[i];
        queries[i] = query_of(task, t, h, out);
      }
      if (task.partials) {
        if (piece >= from && piece <= to) piece_of(task, task.rows[t], g, piece, queries, n);
        continue;
      }
      for (int64_t p = from; p <= to; p++) {
        piece_of(task, task.rows[t], g, p, queries, n);
        for (int i = 0; i < n; i++) {
          if (p == from) __builtin_memcpy(joined[i], local[i], (d + 2) * sizeof(float));
          else join_piece(joined[i], local[i], d);
        }
      }
      for (int i = 0; i < n; i++) write_result(task, t, g * in_group + h0 + i, joined[i]);
    }
  }
}

// Items (token, head): join the partials of their pieces.
static void join(AttentionTask& task, int64_t first, int64_t last) {
  const int64_t d = task.head_dim;
  for (int64_t item = first; item < last; item++) {
    int64_t t = item / task.n_head, h = item % task.n_head;
    float* parts = task.partials + item * task.pieces * (d + 2);
    int64_t from = lowest(task, t) / PIECE, to = task.places[t] / PIECE;
    float* joined = parts + from * (d + 2);
    for (int64_t p = from + 1; p <= to; p++) join_piece(joined, parts + p * (d + 2), d);
    write_result(task, t, h, joined);
  }
}
