// Attention of packed tokens over the cache of their rows.
//
// Keys lie in groups of 16 positions, so a lane is a key. A query sees the positions from `low` to
// its own. They are cut into pieces of PIECE positions, counted from position 0 of the row. In a
// piece, each score is one chain of fused multiply-adds over the dimensions, weights are added by
// lane and then as a tree, and each dimension of the values is one chain over the positions. The
// pieces are joined from the first to the last, then a sink. Values of positions that a query does
// not see are not added to its sum. Queries share the reading of keys and values, which changes no
// sum. With levels, a score is the chain over them, times the key's scale (additive attention needs
// each key, a level times the scale); a weight is multiplied by the value's scale before the chain.

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

// Normalize and rotate queries and keys of a token, and write its keys and values to the cache.
template <class T>
static inline void place_token(AttentionTask& task, int64_t t) {
  const int64_t d = task.head_dim, heads = task.n_head, groups = task.n_kv_head, half = task.turned / 2;
  const float* qkv = task.qkv + t * (heads + 2 * groups) * d;
  int64_t at = task.places[t];
  const float *cos = task.cos + at * half, *sin = task.sin + at * half;
  for (int64_t h = 0; h < heads; h++) {
    float* q = task.queries + (t * heads + h) * d;
    normalize(qkv + h * d, q, d, task.q_norm);
    if (task.cos) turn(q, cos, sin, half);
    if (task.kind == DOT) scale_by(q, d, task.scale);
    if (task.kind == COSINE) {
      scale_by(q, d, inverse_norm(q, d));
      scale_by(q, d, task.score[h]);
    }
  }
  for (int64_t g = 0; g < groups; g++) {
    float key[MOST_DIMENSIONS];
    normalize(qkv + (heads + g) * d, key, d, task.k_norm);
    if (task.cos) turn(key, cos, sin, half);
    if (task.kind == COSINE) scale_by(key, d, inverse_norm(key, d));
    Cached<T> head = cached_head<T>(task, task.rows[t], g);
    write_cached(head.keys + at / 16 * 16 * d + at % 16, key, d, 16, head.key_scales, at);
    write_cached(head.values + at * d, qkv + (heads + groups + g) * d, d, 1, head.value_scales, at);
  }
}

static void place(AttentionTask& task, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; t++) {
    switch (task.form) {
      case FLOATS: place_token<float>(task, t); break;
      case HALVES: place_token<uint16_t>(task, t); break;
      default: place_token<int8_t>(task, t);
    }
  }
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

static const int SHARED = 6;         // queries that share the reading of keys and values, at most
static const float HIDDEN = -3e38f;  // the score of a position that a query does not see

// `yes` where the query sees the position of a lane, otherwise `no`. Lane 0 is the position `at`.
INLINE F where_seen(const Query& query, int64_t at, F yes, F no) {
  if (query.low <= at && at + 15 <= query.high) return yes;
  const float ramp[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F lanes = load(ramp);
  yes = less(lanes, all((float)(query.low - at)), no, yes);
  return less(all((float)(query.high - at)), lanes, no, yes);
}

// A function apart, so that the loops of its caller do not take registers from its own.
#define APART __attribute__((noinline)) static

// The scores of Q queries for the keys from .. to, in whole groups of 16, of dot and cosine attention.
template <int Q, class T>
APART void scores(const AttentionTask& task, const T* keys, int64_t from, int64_t to, const Query* queries,
                  float (*out)[PIECE]) {
  const float* q[Q];
  UNROLLED(i, Q) q[i] = queries[i].q;
  for (int64_t at = from; at <= to; at += 16) {
    F s[Q];
    UNROLLED(i, Q) s[i] = all(0.0f);
    for (int64_t k = 0; k < task.head_dim; k++) {
      F key = load_cached(keys + at * task.head_dim + 16 * k);
      UNROLLED(i, Q) s[i] = fma(all(q[i][k]), key, s[i]);
    }
    UNROLLED(i, Q) store(out[i] + (at - from), s[i]);
  }
}

// The same of additive attention, for n queries.
template <class T>
APART void additive_scores(const AttentionTask& task, const Cached<T>& head, int64_t from, int64_t to,
                           const Query* queries, int n, float (*out)[PIECE]) {
  for (int64_t at = from; at <= to; at += 16) {
    F s[SHARED], scale = SCALED<T> ? load(head.key_scales + at) : all(1.0f);
    for (int i = 0; i < n; i++) s[i] = all(0.0f);
    for (int64_t k = 0; k < task.head_dim; k++) {
      F key = load_cached(head.keys + at * task.head_dim + 16 * k);
      if (SCALED<T>) key = key * scale;
      for (int i = 0; i < n; i++) s[i] = fma(all(queries[i].score[k]), tanh(all(queries[i].q[k]) + key), s[i]);
    }
    for (int i = 0; i < n; i++) store(out[i] + (at - from), s[i]);
  }
}

// NaN stays NaN, which tanh loses.
static inline F capped(F score, float softcap) {
  F y = all(softcap) * tanh(score / all(softcap));
  return less(score, all(0.0f), y, less(all(-1.0f), score, y, score));
}

// The scores of a query become weights. stats: the largest score, the sum of weights.
template <class T>
APART void weigh(const AttentionTask& task, const Cached<T>& head, int64_t from, int64_t to, const Query& query,
                 float* scores, float* stats) {
  const bool scaled = SCALED<T> && task.kind != ADDITIVE;
  const F hidden = all(HIDDEN);
  F top = hidden, total = all(0.0f);
  for (int64_t at = from; at <= to; at += 16) {
    F s = load(scores + (at - from));
    if (scaled) s = s * load(head.key_scales + at);
    if (task.softcap > 0) s = capped(s, task.softcap);
    s = where_seen(query, at, s, hidden);  // what is not seen may be anything, NaN too
    if (task.probabilities) store(task.probabilities + query.at * task.capacity + at, s);
    top = max(s, top);
    store(scores + (at - from), s);
  }
  float peak = largest(top);
  for (int64_t at = from; at <= to; at += 16) {
    F s = load(scores + (at - from));
    F weight = less(hidden, s, exp(s - all(peak)), all(0.0f));
    total = total + weight;
    if (SCALED<T>) weight = weight * load(head.value_scales + at);
    store(scores + (at - from), weight);
  }
  stats[0] = peak, stats[1] = sum(total);
}

// One piece for Q queries of one key-value head, each of which sees a position of it. A result is
// [D + 2]: the sum of values, the largest score, the sum of weights.
template <int Q, class T>
APART void attend_piece(const AttentionTask& task, const Cached<T>& head, int64_t start, const Query* queries,
                        float* results) {
  const int64_t d = task.head_dim, end = start + PIECE;
  const T* values = head.values;
  float weights[Q][PIECE];
  int64_t low = queries[0].low, high = queries[0].high, all_from = low, all_to = high;
  for (int i = 1; i < Q; i++) {
    low = least(low, queries[i].low), high = most(high, queries[i].high);
    all_from = most(all_from, queries[i].low), all_to = least(all_to, queries[i].high);  // all see these
  }
  low = most(low, start), high = least(high, end - 1);
  all_from = least(most(all_from, low), high + 1), all_to = most(least(all_to, high), all_from - 1);
  const int64_t from = low / 16 * 16;  // position of the first weight
  if (task.kind == ADDITIVE) additive_scores(task, head, from, high, queries, Q, weights);
  else scores<Q>(task, head.keys, from, high, queries, weights);
  UNROLLED(i, Q) weigh(task, head, from, high, queries[i], weights[i], results + i * (d + 2) + d);
  for (int64_t k = 0; k < d; k += 16) {
    int64_t n = least(16, d - k);
    F y[Q];
    UNROLLED(i, Q) y[i] = all(0.0f);
    auto add_some = [&](int64_t first, int64_t until) {  // positions that only some queries see
      for (int64_t at = first; at < until; at++)
        UNROLLED(i, Q)
          if (queries[i].low <= at && at <= queries[i].high)
            y[i] = fma(all(weights[i][at - from]), load_cached(values + at * d + k, n), y[i]);
    };
    add_some(low, all_from);
    for (int64_t at = all_from; at <= all_to; at++) {
      F value = load_cached(values + at * d + k, n);
      UNROLLED(i, Q) y[i] = fma(all(weights[i][at - from]), value, y[i]);
    }
    add_some(all_to + 1, high + 1);
    UNROLLED(i, Q) store_some(results + i * (d + 2) + k, y[i], n);
  }
}

template <int Q, class T>
static inline void attend_some(const AttentionTask& task, const Cached<T>& head, int64_t start, const Query* queries,
                               int n, float* results) {
  if (n == Q) return attend_piece<Q>(task, head, start, queries, results);
  attend_some<(Q > 1 ? Q - 1 : 1)>(task, head, start, queries, n, results);
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

// weigh() left the scores where the probabilities go: turn them into weights, 0 where the query does
// not see. stats: the largest score and the sum of weights, of all pieces and the sink.
static inline void finish_probabilities(const AttentionTask& task, const Query& query, const float* stats) {
  float* p = task.probabilities + query.at * task.capacity;
  int64_t from = query.low / 16 * 16, to = rounded_up(query.high + 1, 16);
  __builtin_memset(p, 0, from * sizeof(float));
  for (int64_t at = from; at < to; at += 16) {
    F s = load(p + at);
    F weight = less(all(HIDDEN), s, exp(s - all(stats[0])), all(0.0f)) / all(stats[1]);
    store(p + at, where_seen(query, at, weight, all(0.0f)));
  }
  __builtin_memset(p + to, 0, (task.capacity - to) * sizeof(float));
}

// Behind the last piece: a sink joins the weights, whose sum divides the sum of values.
static inline void finish(const AttentionTask& task, const Query& query, float* values, float* stats) {
  const int64_t d = task.head_dim;
  if (task.sinks && stats[1] > 0) {  // without a weight every score was NaN, and the result stays NaN
    float sink = task.sinks[query.at % task.n_head], part[MOST_DIMENSIONS + 2];
    __builtin_memset(part, 0, d * sizeof(float));
    part[d] = sink, part[d + 1] = sink == sink ? 1.0f : sink;
    join_piece(values, stats, part, d);
  }
  for (int64_t k = 0; k < d; k += 16)
    store_some(values + k, load_some(values + k, d - k, 0) / all(stats[1]), d - k);
  if (task.probabilities) finish_probabilities(task, query, stats);
}

static inline Query query_of(const AttentionTask& task, int64_t t, int64_t h) {
  int64_t at = t * task.n_head + h, d = task.head_dim;
  const float* score = task.kind == ADDITIVE ? task.score + h * d : nullptr;
  return {task.queries + at * d, score, lowest(task, t), task.places[t], at};
}

static inline bool sees(const Query& q, int64_t piece) { return q.low / PIECE <= piece && piece <= q.high / PIECE; }

// One piece for the queries that see it. Their sums go to `partials`, or are joined in `out`.
template <class T>
static inline void attend_queries(AttentionTask& task, int64_t row, int64_t g, int64_t piece, const Query* queries,
                                  int64_t n, float (*stats)[2]) {
  const int64_t d = task.head_dim;
  const Cached<T> head = cached_head<T>(task, row, g);
  float results[SHARED * (MOST_DIMENSIONS + 2)];
  for (int64_t i = 0; i < n;) {
    Query seeing[SHARED];
    int64_t from[SHARED];
    int count = 0;
    for (; i < n && count < SHARED; i++)
      if (sees(queries[i], piece)) seeing[count] = queries[i], from[count++] = i;
    if (!count) return;
    attend_some<SHARED>(task, head, piece * PIECE, seeing, count, results);
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
  const int64_t groups = task.n_kv_head, in_group = task.n_head / groups;
  for (int64_t item = first; item < last; item++) {
    int64_t pair = task.partials ? item / task.pieces : item, g = pair % groups;
    const Run& run = task.runs[pair / groups];
    int64_t all_queries = run.count * in_group, row = task.rows[run.first];
    for (int64_t q0 = 0; q0 < all_queries; q0 += MOST_QUERIES) {
      Query queries[MOST_QUERIES];
      float stats[MOST_QUERIES][2];
      int64_t n = least(MOST_QUERIES, all_queries - q0), from = task.pieces, to = 0;
      for (int64_t i = 0; i < n; i++) {
        queries[i] = query_of(task, run.first + (q0 + i) / in_group, g * in_group + (q0 + i) % in_group);
        from = least(from, queries[i].low / PIECE), to = most(to, queries[i].high / PIECE);
      }
      if (task.partials) from = to = item % task.pieces;
      for (int64_t piece = from; piece <= to; piece++) {
        switch (task.form) {
          case FLOATS: attend_queries<float>(task, row, g, piece, queries, n, stats); break;
          case HALVES: attend_queries<uint16_t>(task, row, g, piece, queries, n, stats); break;
          default: attend_queries<int8_t>(task, row, g, piece, queries, n, stats);
        }
      }
      for (int64_t i = 0; !task.partials && i < n; i++)
        finish(task, queries[i], task.out + queries[i].at * task.head_dim, stats[i]);
    }
  }
}

// Items (token, head): join the partials of their pieces.
static void join(AttentionTask& task, int64_t first, int64_t last) {
  const int64_t d = task.head_dim;
  for (int64_t item = first; item < last; item++) {
    const Query query = query_of(task, item / task.n_head, item % task.n_head);
    int64_t from = query.low / PIECE, to = query.high / PIECE;
    const float* part = task.partials + (item * task.pieces + from) * (d + 2);
    float *out = task.out + item * d, stats[2] = {part[d], part[d + 1]};
    __builtin_memcpy(out, part, d * sizeof(float));
    for (int64_t p = from + 1; p <= to; p++) join_piece(out, stats, part + (p - from) * (d + 2), d);
    finish(task, query, out, stats);
  }
}
