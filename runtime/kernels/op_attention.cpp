// q|k|v of packed tokens -> attention over the cache of each token's row, which is written in place
#include "operator.h"

struct Attention : Kernel {
  int64_t n_head, n_kv_head, window;
  int kind, cache_type;
};

Status create_attention(const OrtApi* api, const OrtKernelInfo* info, int cache_type, Kernel** out) {
  Attention* k = (Attention*)calloc(1, sizeof(Attention));
  if (!k) return error(api, "gptx.Attention: no memory");
  k->n_head = number(api, info, "n_head", 0);
  k->n_kv_head = number(api, info, "n_kv_head", 0);
  k->window = number(api, info, "window", 0);
  k->kind = (int)number(api, info, "kind", DOT);
  k->cache_type = cache_type;
  *out = k;
  if (k->n_head > 0 && k->n_kv_head > 0 && k->n_head % k->n_kv_head == 0 && k->window >= 0) return nullptr;
  free(k);
  return error(api, "gptx.Attention: n_head, n_kv_head and window do not fit together");
}

struct AttentionCall {
  const Kernels* kernels;
  AttentionTask task;
};
static void place_tokens(void* t, int64_t first, int64_t last) {
  ((AttentionCall*)t)->kernels->place(((AttentionCall*)t)->task, first, last);
}
static void attend_items(void* t, int64_t first, int64_t last) {
  ((AttentionCall*)t)->kernels->attend(((AttentionCall*)t)->task, first, last);
}
static void join_items(void* t, int64_t first, int64_t last) {
  ((AttentionCall*)t)->kernels->join(((AttentionCall*)t)->task, first, last);
}

// Cut the tokens into runs of at most `most_tokens`.
static int64_t find_runs(const AttentionTask& task, int64_t most_tokens, Run* runs) {
  int64_t n = 0;
  for (int64_t t = 0; t < task.tokens; t++) {
    bool goes_on = n && runs[n - 1].count < most_tokens && task.rows[t] == task.rows[t - 1] &&
                   task.places[t] == task.places[t - 1] + 1;
    if (goes_on) runs[n - 1].count++;
    else runs[n++] = {t, 1};
  }
  return n;
}

Status run_attention(Kernel* kernel, OrtKernelContext* context) {
  Attention& k = *(Attention*)kernel;
  Tensor qkv, rows, places, keys, values, cos, sin, score, starts;
  if (Status s = inputs(k.api, context, {{0, &qkv}, {1, &rows}, {2, &places}, {3, &keys}, {4, &values}, {5, &cos},
                           {6, &sin}, {7, &score}, {8, &starts}})) return s;
  int64_t tokens = rows.count(), n_rows = keys.shape[0], capacity = keys.shape[2], d = keys.shape[3];
  int64_t half = cos.data ? cos.last() : 0, heads = k.n_head + 2 * k.n_kv_head;
  bool whole = keys.rank == 4 && keys.shape[1] == k.n_kv_head && capacity % 16 == 0 && d > 0 && d <= 1024 &&
               keys.type == k.cache_type && is(values, k.cache_type, keys.count()) &&
               is(qkv, FLOAT, tokens * heads * d) && is(rows, INT64, tokens) && is(places, INT64, tokens) &&
               is(starts, INT64, n_rows) && 2 * half <= d;
  if (cos.data) whole = whole && is(sin, FLOAT, cos.count()) && cos.type == FLOAT && cos.rank == 2 && half > 0;
  if (k.kind != DOT) whole = whole && is(score, FLOAT, k.kind == COSINE ? k.n_head : k.n_head * d);
  if (!whole) return error(k.api, "gptx.Attention: an input has a wrong type or shape");
  const int64_t *row_of = (const int64_t*)rows.data, *place_of = (const int64_t*)places.data;
  int64_t longest = 0;
  for (int64_t t = 0; t < tokens; t++) {
    int64_t start = row_of[t] >= 0 && row_of[t] < n_rows ? ((const int64_t*)starts.data)[row_of[t]] : -1;
    if (start < 0 || place_of[t] < start || place_of[t] >= capacity || (cos.data && place_of[t] >= cos.shape[0]))
      return error(k.api, "gptx.Attention: a token's row or position is outside the cache");
    longest = most(longest, place_of[t] + 1);
  }
  int64_t shape[4];
  memcpy(shape, qkv.shape, sizeof shape);
  shape[qkv.rank - 1] = k.n_head * d;
  void *out, *new_keys, *new_values;
  if (Status s = output(k.api, context, 0, shape, qkv.rank, &out)) return s;
  if (Status s = output(k.api, context, 1, keys.shape, 4, &new_keys)) return s;
  if (Status s = output(k.api, context, 2, values.shape, 4, &new_values)) return s;
  int64_t bytes = keys.count() * (k.cache_type == FLOAT ? sizeof(float) : sizeof(uint16_t));
  if (new_keys != keys.data) memcpy(new_keys, keys.data, bytes);
  if (new_values != values.data) memcpy(new_values, values.data, bytes);
  if (!tokens) return nullptr;
  AttentionCall call = {};
  call.kernels = k.kernels;
  AttentionTask& task = call.task;
  task.tokens = tokens, task.n_head = k.n_head, task.n_kv_head = k.n_kv_head, task.head_dim = d;
  task.capacity = capacity, task.window = k.window, task.kind = k.kind, task.qkv = qkv.floats();
  task.rows = row_of, task.places = place_of, task.starts = (const int64_t*)starts.data;
  task.cos = cos.floats(), task.sin = sin.floats(), task.turned = 2 * half, task.score = score.floats();
  task.half = k.cache_type == FLOAT16, task.keys = new_keys, task.values = new_values, task.out = (float*)out;
  task.pieces = (longest + PIECE - 1) / PIECE;
  // few tokens over a long cache: the pieces are shared among the threads
  bool split = task.pieces > 1 && tokens * k.n_kv_head < 32 * k.threads;
  int64_t parts = split ? tokens * k.n_head * task.pieces * (d + 2) : 0;
  Scratch scratch(SPACE(float, tokens * k.n_head * d) + SPACE(float, parts) + SPACE(Run, tokens));
  if (!scratch.block) return error(k.api, "gptx.Attention: no memory");
  task.queries = scratch.take<float>(tokens * k.n_head * d);
  task.partials = split ? scratch.take<float>(parts) : nullptr;
  // longer runs read the cache less often, shorter ones share the work among the threads
  Run* runs = scratch.take<Run>(tokens);
  int64_t in_group = k.n_head / k.n_kv_head, fair = tokens * k.n_kv_head / (4 * k.threads);
  task.n_runs = find_runs(task, most((6 + in_group - 1) / in_group, least(fair, most(1, 48 / in_group))), runs);
  task.runs = runs;
  FloatState state;
  run_parallel(place_tokens, &call, tokens, 8, tokens < 8 ? 1 : k.threads);
  int64_t items = task.n_runs * k.n_kv_head * (split ? task.pieces : 1);
  run_parallel(attend_items, &call, items, 1, longest * tokens < 64 ? 1 : k.threads);
  if (split) run_parallel(join_items, &call, tokens * k.n_head, 16, 1);
  return nullptr;
}
