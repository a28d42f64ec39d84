// q|k|v of packed tokens -> attention over the cache of each token's row, which is written in place
#include <stdio.h>

#include "operator.h"

struct Attention : Kernel {
  int64_t n_head, n_kv_head, window;
  int kind, cache_type;
  float scale, softcap, epsilon;
};

static const int64_t MOST_HEADS = 1 << 16;

// What is wrong with the attributes; null if nothing is.
static const char* problem(const Attention& k) {
  if (k.n_head <= 0 || k.n_head > MOST_HEADS || k.n_kv_head <= 0 || k.n_head % k.n_kv_head || k.window < 0)
    return "gptx.Attention: n_head, n_kv_head and window do not fit together";
  if (k.kind != DOT && k.kind != COSINE && k.kind != ADDITIVE) return "gptx.Attention: kind is not 0, 1 or 2";
  const float reals[] = {k.scale, k.softcap, k.epsilon};
  for (float x : reals)
    if (!(x >= 0 && x <= __FLT_MAX__)) return "gptx.Attention: scale, softcap or epsilon is negative or not finite";
  if (k.kind != DOT && k.scale > 0) return "gptx.Attention: only dot attention (kind 0) has a scale";
  return nullptr;
}

Status create_attention(const OrtApi* api, const OrtKernelInfo* info, int cache_type, Kernel** out) {
  Attention* k = (Attention*)calloc(1, sizeof(Attention));
  if (!k) return error(api, "gptx.Attention: no memory");
  k->n_head = number(api, info, "n_head", 0);
  k->n_kv_head = number(api, info, "n_kv_head", 0);
  k->window = number(api, info, "window", 0);
  k->kind = (int)number(api, info, "kind", DOT);
  k->scale = real_number(api, info, "scale");
  k->softcap = real_number(api, info, "softcap");
  k->epsilon = real_number(api, info, "epsilon");
  k->cache_type = cache_type;
  *out = k;
  const char* wrong = problem(*k);
  if (!wrong) return nullptr;
  free(k);
  return error(api, wrong);
}

// The inputs; the last two belong to a cache of levels.
enum { QKV, ROWS, PLACES, KEYS, VALUES, COS, SIN, SCORE, STARTS, Q_NORM, K_NORM, SINKS, KEY_SCALES, VALUE_SCALES };
static const int N_INPUTS = 14;
static const char* const NAMES[N_INPUTS] = {"qkv",    "row_ids", "position_ids", "keys",       "values",
                                            "cos",    "sin",     "score",        "row_starts", "q_norm",
                                            "k_norm", "sinks",   "key_scales",   "value_scales"};

static bool fits(const Attention& k, const Tensor* in, int i) {
  const Tensor &tensor = in[i], &keys = in[KEYS];
  int64_t tokens = in[ROWS].count(), d = keys.shape[3], width = (k.n_head + 2 * k.n_kv_head) * d;
  switch (i) {
    case KEYS:
      return tensor.data && tensor.type == k.cache_type && tensor.rank == 4 && tensor.shape[1] == k.n_kv_head &&
             tensor.shape[2] % 16 == 0 && d > 0 && d <= MOST_DIMENSIONS;
    case VALUES:
      return is(tensor, k.cache_type, keys.count()) && tensor.rank == 4 &&
             !memcmp(tensor.shape, keys.shape, sizeof keys.shape);
    case COS:
      return !tensor.data ||
             (tensor.type == FLOAT && tensor.rank == 2 && tensor.last() > 0 && 2 * tensor.last() <= d);
    case SIN: return !in[COS].data || is(tensor, FLOAT, in[COS].count());
    case SCORE: return k.kind == DOT || is(tensor, FLOAT, k.kind == COSINE ? k.n_head : k.n_head * d);
    case STARTS: return is(tensor, INT64, keys.shape[0]);
    case Q_NORM: case K_NORM: return !tensor.data || is(tensor, FLOAT, d);
    case SINKS: return !tensor.data || is(tensor, FLOAT, k.n_head);
    case KEY_SCALES: case VALUE_SCALES: return k.cache_type != INT8 || is(tensor, FLOAT, keys.count() / d);
    case QKV: return is(tensor, FLOAT, tokens * width) && tensor.rank && tensor.last() == width;
    default: return is(tensor, INT64, tokens);
  }
}

static Status read_inputs(const Attention& k, const OrtKernelContext* context, Tensor* in) {
  for (int i = 0; i < (k.cache_type == INT8 ? N_INPUTS : KEY_SCALES); i++)
    if (Status s = input(k.api, context, i, &in[i])) return s;
  for (int n = 0; n < N_INPUTS; n++) {
    int i = (n + KEYS) % N_INPUTS;  // keys first: they say how large a head is
    if (fits(k, in, i)) continue;
    char words[128];
    snprintf(words, sizeof words, "gptx.Attention: the input %s has a wrong type or shape, or is missing", NAMES[i]);
    return error(k.api, words);
  }
  return nullptr;
}

// The output `i`, which goes on from the input `from`: in its memory if the caller binds both to it.
template <class T>
static Status output_of(const Attention& k, OrtKernelContext* context, size_t i, const Tensor& from, T** out) {
  if (Status s = output(k.api, context, i, from.shape, from.rank, out)) return s;
  int64_t size = from.type == INT8 ? 1 : from.type == FLOAT16 ? 2 : 4;
  if (*out != from.data) memcpy(*out, from.data, from.count() * size);
  return nullptr;
}

static Status make_outputs(const Attention& k, OrtKernelContext* context, const Tensor* in, AttentionTask* task) {
  int64_t shape[4], d = in[KEYS].shape[3];
  memcpy(shape, in[QKV].shape, sizeof shape);
  shape[in[QKV].rank - 1] = k.n_head * d;
  if (Status s = output(k.api, context, 0, shape, in[QKV].rank, &task->out)) return s;
  if (Status s = output_of(k, context, 1, in[KEYS], &task->keys)) return s;
  if (Status s = output_of(k, context, 2, in[VALUES], &task->values)) return s;
  size_t next = 3;
  if (k.cache_type == INT8) {
    if (Status s = output_of(k, context, next++, in[KEY_SCALES], &task->key_scales)) return s;
    if (Status s = output_of(k, context, next++, in[VALUE_SCALES], &task->value_scales)) return s;
  }
  const int64_t of_probabilities[] = {in[ROWS].count(), k.n_head, in[KEYS].shape[2]};
  return output(k.api, context, next, of_probabilities, 3, &task->probabilities);
}

// The length of the longest row that a token sees; -1 if a token lies outside the cache.
static int64_t longest_row(const Tensor* in) {
  const int64_t *rows = (const int64_t*)in[ROWS].data, *places = (const int64_t*)in[PLACES].data;
  int64_t longest = 0, limit = in[KEYS].shape[2];
  if (in[COS].data) limit = least(limit, in[COS].shape[0]);
  for (int64_t t = 0; t < in[ROWS].count(); t++) {
    if (rows[t] < 0 || rows[t] >= in[KEYS].shape[0]) return -1;
    int64_t start = ((const int64_t*)in[STARTS].data)[rows[t]];
    if (start < 0 || places[t] < start || places[t] >= limit) return -1;
    longest = most(longest, places[t] + 1);
  }
  return longest;
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

static Norm head_norm(const Tensor& gain, float epsilon) {
  return {gain.data ? RMS : NO_NORM, epsilon, gain.floats(), nullptr};
}

Status run_attention(Kernel* kernel, OrtKernelContext* context) {
  Attention& k = *(Attention*)kernel;
  Tensor in[N_INPUTS] = {};
  if (Status s = read_inputs(k, context, in)) return s;
  int64_t longest = longest_row(in), tokens = in[ROWS].count(), d = in[KEYS].shape[3];
  if (longest < 0) return error(k.api, "gptx.Attention: a token's row or position is outside the cache");
  Call<AttentionTask> call = {};
  call.kernels = k.kernels;
  AttentionTask& task = call.task;
  if (Status s = make_outputs(k, context, in, &task)) return s;
  if (!tokens) return nullptr;
  task.tokens = tokens, task.n_head = k.n_head, task.n_kv_head = k.n_kv_head, task.head_dim = d;
  task.capacity = in[KEYS].shape[2], task.window = k.window, task.kind = k.kind, task.qkv = in[QKV].floats();
  task.rows = (const int64_t*)in[ROWS].data, task.places = (const int64_t*)in[PLACES].data;
  task.starts = (const int64_t*)in[STARTS].data;
  task.cos = in[COS].floats(), task.sin = in[SIN].floats(), task.turned = in[COS].data ? 2 * in[COS].last() : 0;
  task.q_norm = head_norm(in[Q_NORM], k.epsilon), task.k_norm = head_norm(in[K_NORM], k.epsilon);
  task.scale = k.scale > 0 ? k.scale : 1.0f / __builtin_sqrtf((float)d);
  task.score = in[SCORE].floats(), task.softcap = k.softcap, task.sinks = in[SINKS].floats();
  task.form = k.cache_type == FLOAT ? FLOATS : k.cache_type == FLOAT16 ? HALVES : EIGHT;
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
  call.run<&Kernels::place>(tokens, 8, tokens < 8 ? 1 : k.threads);
  int64_t items = task.n_runs * k.n_kv_head * (split ? task.pieces : 1);
  call.run<&Kernels::attend>(items, 1, longest * tokens < 64 ? 1 : k.threads);
  if (split) call.run<&Kernels::join>(tokens * k.n_head, 16, task.probabilities ? k.threads : 1);
  return nullptr;
}
