// gptx's operators for ONNX Runtime: Embed, Normalize, Linear and Attention, domain "gptx".
//
// Each call checks its inputs; a wrong one ends in an ONNX Runtime error. Scratch memory belongs to
// the call, so several threads may run one session. docs/reference/operators.md lists the inputs.
#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "kernels.h"
#include "ort_api.h"
#include "packed_file.h"
#include "pool.h"

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

static const int INTERFACE = 3;  // of this library; see ort/native.py

// What the next sessions use. Python sets both while it opens one session at a time.
static const Kernels* chosen;
static int chosen_threads = 1;

struct Tensor {
  int type;
  size_t rank;
  int64_t shape[4];
  void* data;
  const float* floats() const { return (const float*)data; }
  int64_t count() const {
    int64_t n = 1;
    for (size_t i = 0; i < rank; i++) n *= shape[i];
    return n;
  }
  int64_t last() const { return rank ? shape[rank - 1] : 1; }
};

static bool is(const Tensor& t, int type, int64_t count) { return t.data && t.type == type && t.count() == count; }

// An input's place, and where its tensor goes.
struct Wanted {
  size_t place;
  Tensor* tensor;
};

static Status describe(const OrtApi* api, const OrtValue* value, Tensor* out) {
  *out = {};
  if (!value) return nullptr;
  OrtTensorTypeAndShapeInfo* info;
  if (Status s = type_and_shape(api, value, &info)) return s;
  Status s = type_of(api, info, &out->type);
  if (!s) s = rank_of(api, info, &out->rank);
  if (!s && out->rank > 4) s = error(api, "gptx: a tensor of more than 4 dimensions");
  if (!s) s = shape_of(api, info, out->shape, out->rank);
  release(api, info);
  return s ? s : data_of(api, value, &out->data);
}

static Status input(const OrtApi* api, const OrtKernelContext* context, size_t i, Tensor* out) {
  const OrtValue* value;
  if (Status s = get_input(api, context, i, &value)) return s;
  return describe(api, value, out);
}

static Status constant(const OrtApi* api, const OrtKernelInfo* info, size_t i, Tensor* out) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  *out = {};
  if (Status s = constant_input(api, info, i, &is_constant, &value)) {  // the input is left out
    release(api, s);
    return nullptr;
  }
  return is_constant ? describe(api, value, out) : nullptr;
}

template <size_t N>
static Status inputs(const OrtApi* api, const OrtKernelContext* context, const Wanted (&wanted)[N]) {
  for (const Wanted& one : wanted)
    if (Status s = input(api, context, one.place, one.tensor)) return s;
  return nullptr;
}

template <size_t N>
static Status constants(const OrtApi* api, const OrtKernelInfo* info, const Wanted (&wanted)[N]) {
  for (const Wanted& one : wanted)
    if (Status s = constant(api, info, one.place, one.tensor)) return s;
  return nullptr;
}

static Status output(const OrtApi* api, OrtKernelContext* context, size_t i, const int64_t* shape, size_t rank,
                     void** out) {
  OrtValue* value;
  if (Status s = get_output(api, context, i, shape, rank, &value)) return s;
  return data_of(api, value, out);
}

static int64_t number(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t otherwise) {
  int64_t value;
  Status s = attribute(api, info, name, &value);
  if (s) release(api, s);
  return s ? otherwise : value;
}

// Sets the floating-point state that every result depends on, for one call.
struct FloatState {
  uint64_t found = set_float_state();
  ~FloatState() { restore_float_state(found); }
};

// Scratch memory of one call, at a multiple of 64.
struct Scratch {
  char *block, *at;
  explicit Scratch(int64_t bytes) : block((char*)malloc(bytes + 64)) { at = (char*)rounded_up((int64_t)block, 64); }
  ~Scratch() { free(block); }
  template <class T>
  T* take(int64_t n) {
    T* p = (T*)at;
    at += rounded_up(n * (int64_t)sizeof(T), 64);
    return p;
  }
};
#define SPACE(T, n) (rounded_up((n) * (int64_t)sizeof(T), 64) + 64)

struct Kernel {
  const OrtApi* api;
  const Kernels* kernels;
  int threads;
};

static Norm norm_of(const OrtApi* api, const OrtKernelInfo* info) {
  Norm norm = {};
  norm.kind = (int)number(api, info, "norm", NO_NORM);
  Status s = attribute(api, info, "epsilon", &norm.epsilon);
  if (s) release(api, s);
  return norm;
}

// ---------------------------------------------------------------------------------------- Linear
//
// x (.., n_in) -> activated(norm(x) W^T + bias) * factor + residual, (.., outputs)

struct Linear : Kernel {
  Weight* weight;
  Piece* piece;
  Norm norm;
  int terms, activation;
  bool gated;
};

struct LinearCall {
  const Kernels* kernels;
  LinearTask task;
};
static void prepare_tokens(void* t, int64_t first, int64_t last) {
  ((LinearCall*)t)->kernels->prepare(((LinearCall*)t)->task, first, last);
}
static void multiply_groups(void* t, int64_t first, int64_t last) {
  ((LinearCall*)t)->kernels->multiply(((LinearCall*)t)->task, first, last);
}

// The numbers of [n_out][blocks] in `values`, each times its step in `steps` if there are any.
static bool read_grid(const Tensor& values, const Tensor& steps, int64_t n_out, int64_t blocks, Grid* out) {
  const Tensor& floats = steps.data ? steps : values;
  if (n_out <= 0 || floats.count() % n_out || (floats.type != FLOAT && floats.type != FLOAT16)) return false;
  out->n_steps = floats.count() / n_out;
  if (out->n_steps <= 0 || out->n_steps > blocks) return false;
  out->blocks_per_step = (blocks + out->n_steps - 1) / out->n_steps;
  out->scale = 1;
  if (floats.type == FLOAT) out->steps = floats.floats();
  else out->halves = (const uint16_t*)floats.data;
  if (!steps.data) return out->n_steps == blocks;
  out->factors = (const int8_t*)values.data;
  return is(values, INT8, n_out * blocks) && (blocks + out->blocks_per_step - 1) / out->blocks_per_step == out->n_steps;
}

// Offsets in columns behind the others: see Matrix.copies. The bound keeps the columns far below 2^63.
static bool copies_fit(const Matrix& m, const Tensor& scales, const Tensor& steps) {
  return m.layout == Matrix::BLOCKS && m.bits == 4 && m.copies > 0 && m.copies <= LONGEST_BLOCK &&
         m.n_in % m.block == 0 && scales.type == FLOAT && !steps.data && !m.zeros && !m.table;
}

// Describe the stored matrix; false if weights, scales and attributes do not fit together.
static bool read_matrix(const Tensor& w, const Tensor& scales, const Tensor& steps, const Tensor& zeros,
                        const Tensor& offsets, const Tensor& offset_steps, const Tensor& table, Matrix* m) {
  if (!w.data || m->n_in <= 0 || m->n_in >= 1 << 24) return false;
  m->values = w.data;
  if (m->layout == Matrix::BLOCKS) {
    if (m->block < 16 || m->block > LONGEST_BLOCK || m->block % 16 || (m->bits != 8 && (m->bits < 4 || m->bits > 6))) return false;
    m->n_out = w.rank ? w.shape[0] : 0;
    m->zeros = (const uint8_t*)zeros.data, m->table = (const int8_t*)table.data;
    if (m->copies && (offsets.data || !copies_fit(*m, scales, steps))) return false;
    int64_t blocks = stored_blocks(*m);
    return is(w, UINT8, m->n_out * blocks * m->block * m->bits / 8) &&
           read_grid(scales, steps, m->n_out, blocks, &m->scales) &&
           (!offsets.data || read_grid(offsets, offset_steps, m->n_out, blocks, &m->offsets)) &&
           (!zeros.data || (m->bits == 4 && is(zeros, UINT8, m->n_out * ((blocks + 1) / 2)))) &&
           (!table.data || (m->bits == 4 && is(table, INT8, 16)));
  }
  if (m->copies) return false;
  if (m->layout == Matrix::CHANNELS) {
    m->n_out = w.last();
    bool whole = m->bits == 8 && is(w, INT8, m->n_in * m->n_out) && read_grid(scales, {}, m->n_out, 1, &m->scales);
    m->scales.scale = 127;
    return whole && m->scales.steps;
  }
  m->n_out = m->layout == Matrix::IN_OUT ? w.last() : w.rank ? w.shape[0] : 0;
  return (m->layout == Matrix::IN_OUT || m->layout == Matrix::OUT_IN) && (m->bits == 32 || m->bits == 16) &&
         is(w, m->bits == 32 ? FLOAT : FLOAT16, m->n_in * m->n_out);
}

static Status create_linear(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
  Tensor w, scales, steps, zeros, offsets, offset_steps, table;
  if (Status s = constants(api, info, {{1, &w}, {2, &scales}, {3, &steps}, {4, &zeros}, {9, &offsets},
                                       {10, &offset_steps}, {11, &table}})) return s;
  Matrix m = {};
  m.layout = (int)number(api, info, "layout", Matrix::BLOCKS);
  m.bits = (int)number(api, info, "bits", 8);
  m.n_in = number(api, info, "n_in", 0);
  m.block = number(api, info, "block", 0);
  m.gated = number(api, info, "gated", 0) != 0;
  m.copies = number(api, info, "copies", 0);
  if (!read_matrix(w, scales, steps, zeros, offsets, offset_steps, table, &m) || m.n_out <= 0 || (m.gated && m.n_out % 2))
    return error(api, "gptx.Linear: weights, scales and attributes do not fit together");
  Linear* k = (Linear*)calloc(1, sizeof(Linear));
  char name[64] = "";
  size_t length = sizeof name;
  if (Status s = node_name(api, info, name, &length)) release(api, s);  // a longer name: no name
  if (k) k->weight = pack(m, name, chosen_threads, &k->piece);
  if (!k || !k->weight) {
    free(k);
    return error(api, reads_packed_file() ? "gptx.Linear: the file of packed weights lacks a weight"
                                          : "gptx.Linear: no memory for the packed weights");
  }
  int64_t row = m.layout == Matrix::BLOCKS ? stored_blocks(m) * m.block : m.n_in;
  if (!reads_packed_file()) was_packed(w.data, m.n_out * row * m.bits / 8);
  k->norm = norm_of(api, info);
  k->terms = m.bits >= 16 ? 0 : (int)number(api, info, "terms", 1);
  k->activation = (int)number(api, info, "activation", NONE);
  k->gated = m.gated;
  *out = k;
  return nullptr;
}

static Status run_linear(Kernel* kernel, OrtKernelContext* context) {
  Linear& k = *(Linear*)kernel;
  const Weight& w = *k.weight;
  Tensor x, bias, residual, gain, shift, factor;
  if (Status s = inputs(k.api, context, {{0, &x}, {5, &bias}, {6, &residual}, {7, &gain}, {8, &shift}, {12, &factor}}))
    return s;
  int64_t tokens = x.last() > 0 ? x.count() / x.last() : 0, outputs = k.gated ? w.n_out / 2 : w.n_out;
  if (x.type != FLOAT || x.last() != w.n_in || !x.rank || (bias.data && !is(bias, FLOAT, w.n_out)) ||
      (residual.data && !is(residual, FLOAT, tokens * outputs)) ||
      (factor.data && (k.gated || !is(factor, FLOAT, tokens * outputs))) || (gain.data && !is(gain, FLOAT, w.n_in)) ||
      (shift.data && !is(shift, FLOAT, w.n_in)))
    return error(k.api, "gptx.Linear: an input has another type or shape than the weight needs");
  int64_t shape[4];
  memcpy(shape, x.shape, sizeof shape);
  shape[x.rank - 1] = outputs;
  void* out;
  if (Status s = output(k.api, context, 0, shape, x.rank, &out)) return s;
  if (!tokens) return nullptr;
  int64_t width = w.n_blocks * w.block, blocks = tokens * w.n_blocks * k.terms;
  Scratch scratch(SPACE(float, tokens * width) + SPACE(int16_t, k.terms * tokens * width) + 2 * SPACE(float, blocks) +
                  SPACE(int32_t, blocks));
  if (!scratch.block) return error(k.api, "gptx.Linear: no memory");
  LinearCall call = {};
  call.kernels = k.kernels;
  LinearTask& task = call.task;
  task.weight = &w;
  task.input = {tokens, width, scratch.take<float>(tokens * width), k.terms,
                (char*)scratch.take<int16_t>(k.terms * tokens * width), scratch.take<float>(blocks),
                scratch.take<float>(blocks), scratch.take<int32_t>(blocks)};
  task.x = x.floats(), task.n_in = w.n_in;
  task.norm = k.norm, task.norm.gain = gain.floats(), task.norm.bias = shift.floats();
  task.activation = k.activation, task.gated = k.gated;
  task.bias = bias.floats(), task.factor = factor.floats(), task.residual = residual.floats();
  task.out = (float*)out;
  FloatState state;
  run_parallel(prepare_tokens, &call, tokens, most(1, 4096 / width), tokens * width < 8192 ? 1 : k.threads);
  int64_t groups = k.gated ? w.n_groups / 2 : w.n_groups, chunks = 6 * k.threads;
  run_parallel(multiply_groups, &call, groups, rounded_up((groups + chunks - 1) / chunks, 2), k.threads);
  return nullptr;
}

static void destroy_linear(Kernel* kernel) {
  Linear* k = (Linear*)kernel;
  release_memory(k->piece);
  free(k->weight);
  free(k);
}

// ------------------------------------------------------------------------------------- Normalize

struct Normalize : Kernel {
  Norm norm;
};

static Status create_normalize(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
  Normalize* k = (Normalize*)calloc(1, sizeof(Normalize));
  if (!k) return error(api, "gptx.Normalize: no memory");
  k->norm = norm_of(api, info);
  *out = k;
  return nullptr;
}

static Status run_normalize(Kernel* kernel, OrtKernelContext* context) {
  Normalize& k = *(Normalize*)kernel;
  Tensor x, gain, shift;
  if (Status s = inputs(k.api, context, {{0, &x}, {1, &gain}, {2, &shift}})) return s;
  int64_t n = x.last();
  if (x.type != FLOAT || !x.rank || n <= 0 || (gain.data && !is(gain, FLOAT, n)) || (shift.data && !is(shift, FLOAT, n)))
    return error(k.api, "gptx.Normalize: an input has a wrong type or shape");
  void* out;
  if (Status s = output(k.api, context, 0, x.shape, x.rank, &out)) return s;
  Norm norm = k.norm;
  norm.gain = gain.floats(), norm.bias = shift.floats();
  FloatState state;
  for (int64_t t = 0; t < x.count() / n; t++) k.kernels->normalize(x.floats() + t * n, (float*)out + t * n, n, norm);
  return nullptr;
}

// ----------------------------------------------------------------------------------------- Embed
//
// ids [T] -> rows of a table [T][width], times a mask, plus a residual. The id -1 - e takes row e of
// `embeds` [E][width] in place of the table.

struct Embed : Kernel {
  int64_t block;
};

static Status create_embed(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
  Embed* k = (Embed*)calloc(1, sizeof(Embed));
  if (!k) return error(api, "gptx.Embed: no memory");
  k->block = number(api, info, "block", 0);
  *out = k;
  return nullptr;
}

// A table of floats or, as Linear's weights (see read_matrix), in blocks.
struct Table {
  Tensor values, scales, steps, offsets, offset_steps, levels;
  int64_t block, bits;
  Grid scale, offset;
  int64_t rows() const { return values.rank ? values.shape[0] : 0; }
  int64_t blocks() const { return values.shape[1]; }
  // Describes the blocks too; false if the tensors do not fit together.
  bool fits(int64_t width, int64_t of_block) {
    if (!values.data) return true;
    if (values.type == FLOAT || values.type == FLOAT16) return values.rank == 2 && values.shape[1] == width;
    if (values.type != UINT8 || values.rank != 3 || of_block <= 0 || blocks() * of_block < width) return false;
    block = of_block, bits = values.shape[2] * 8 / block;
    return values.shape[2] * 8 == block * bits && (bits == 8 || (bits >= 4 && bits <= 6)) &&
           (!levels.data || (bits == 4 && is(levels, INT8, 16))) && read_grid(scales, steps, rows(), blocks(), &scale) &&
           (!offsets.data || read_grid(offsets, offset_steps, rows(), blocks(), &offset));
  }
  float number(const Grid& g, int64_t row, int64_t b) const {
    int64_t at = row * g.n_steps + b / g.blocks_per_step;
    float step = g.steps ? g.steps[at] : widened(g.halves[at]);
    return g.factors ? (float)g.factors[row * blocks() + b] * step : step;
  }
  int level(const uint8_t* q, int64_t i) const {  // of one block
    if (bits == 8) return q[i];
    int low = q[i / 2] >> (i % 2 * 4) & 15;
    const uint8_t* high = q + block / 2;
    if (bits == 5) low |= (high[i / 8] >> i % 8 & 1) << 4;
    if (bits == 6) low |= (high[i / 4] >> (i % 4 * 2) & 3) << 4;
    return levels.data ? ((const int8_t*)levels.data)[low] : low;
  }
  void read(int64_t row, int64_t width, float* out) const {
    if (values.type == FLOAT) {
      memcpy(out, values.floats() + row * width, width * sizeof(float));
      return;
    }
    if (values.type == FLOAT16) {
      for (int64_t i = 0; i < width; i++) out[i] = widened(((const uint16_t*)values.data)[row * width + i]);
      return;
    }
    int zero = levels.data || offsets.data ? 0 : 1 << (bits - 1);
    const uint8_t* q = (const uint8_t*)values.data + row * blocks() * values.shape[2];
    for (int64_t b = 0; b * block < width; b++, q += values.shape[2]) {
      float step = number(scale, row, b);
      for (int64_t i = 0; i < least(block, width - b * block); i++) {
        float value = (float)(level(q, i) - zero) * step;
        out[b * block + i] = offsets.data ? value + number(offset, row, b) : value;
      }
    }
  }
};

static Status run_embed(Kernel* kernel, OrtKernelContext* context) {
  Embed& k = *(Embed*)kernel;
  Tensor ids, residual, mask, embeds;
  Table common = {}, rare = {};
  if (Status s = inputs(k.api, context, {{0, &ids}, {1, &common.values}, {2, &common.scales}, {3, &common.steps},
                           {4, &rare.values}, {5, &rare.scales}, {6, &rare.steps}, {7, &residual}, {8, &mask},
                           {9, &common.offsets}, {10, &common.offset_steps}, {11, &common.levels},
                           {12, &embeds}})) return s;
  if (!common.values.data || common.values.rank < 2) return error(k.api, "gptx.Embed: no table");
  int64_t width = common.values.type == UINT8 ? common.values.shape[1] * k.block : common.values.shape[1];
  int64_t n = ids.count(), rows = common.rows() + rare.rows(), given = embeds.rank ? embeds.shape[0] : 0;
  int64_t rare_block = rare.values.data && rare.values.rank == 3 && rare.values.shape[1] ? width / rare.values.shape[1] : 1;
  if (ids.type != INT64 || ids.rank < 1 || ids.rank > 3 || !common.fits(width, k.block) || !rare.fits(width, rare_block) ||
      (residual.data && !is(residual, FLOAT, n * width)) || (mask.data && !is(mask, FLOAT, width)) ||
      (given && (embeds.rank != 2 || !is(embeds, FLOAT, given * width))))
    return error(k.api, "gptx.Embed: tables, ids and residual do not fit together");
  int64_t shape[4];
  memcpy(shape, ids.shape, sizeof shape);
  shape[ids.rank] = width;
  void* made;
  if (Status s = output(k.api, context, 0, shape, ids.rank + 1, &made)) return s;
  FloatState state;
  for (int64_t t = 0; t < n; t++) {
    int64_t id = ((const int64_t*)ids.data)[t];
    if (id < -given || id >= rows) return error(k.api, "gptx.Embed: an id is outside the table");
    float* out = (float*)made + t * width;
    if (id < 0) memcpy(out, embeds.floats() + (-1 - id) * width, width * sizeof(float));
    else if (id < common.rows()) common.read(id, width, out);
    else rare.read(id - common.rows(), width, out);
    for (int64_t i = 0; mask.data && i < width; i++) out[i] *= mask.floats()[i];
    for (int64_t i = 0; residual.data && i < width; i++) out[i] += residual.floats()[t * width + i];
  }
  return nullptr;
}

static void destroy_plain(Kernel* kernel) { free(kernel); }

// ------------------------------------------------------------------------------------- Attention
//
// q|k|v of packed tokens -> attention over the cache of each token's row, which is written in place

struct Attention : Kernel {
  int64_t n_head, n_kv_head, window;
  int kind, cache_type;
};

template <int CACHE_TYPE>
static Status create_attention(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
  Attention* k = (Attention*)calloc(1, sizeof(Attention));
  if (!k) return error(api, "gptx.Attention: no memory");
  k->n_head = number(api, info, "n_head", 0);
  k->n_kv_head = number(api, info, "n_kv_head", 0);
  k->window = number(api, info, "window", 0);
  k->kind = (int)number(api, info, "kind", DOT);
  k->cache_type = CACHE_TYPE;
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

static Status run_attention(Kernel* kernel, OrtKernelContext* context) {
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

// ------------------------------------------------------------------------------------ registered

struct Operator : OrtCustomOp {
  const char* name;
  size_t inputs, needed, outputs;
  int cache_type;  // of the outputs behind the first
  Status (*make)(const OrtApi*, const OrtKernelInfo*, Kernel**);
  Status (*run)(Kernel*, OrtKernelContext*);
};

static const Operator& of(const OrtCustomOp* op) { return *(const Operator*)op; }

static Status create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = nullptr;
  if (Status s = of(op).make(api, info, &kernel)) return s;
  kernel->api = api, kernel->kernels = chosen, kernel->threads = chosen_threads;
  *out = kernel;
  return nullptr;
}

template <Status (*RUN)(Kernel*, OrtKernelContext*)>
static Status compute(void* kernel, OrtKernelContext* context) { return RUN((Kernel*)kernel, context); }
template <void (*DESTROY)(Kernel*)>
static void destroy(void* kernel) { DESTROY((Kernel*)kernel); }

template <Status (*RUN)(Kernel*, OrtKernelContext*), void (*DESTROY)(Kernel*)>
static Operator describe_operator(const char* name, size_t inputs, size_t needed, size_t outputs,
                                  Status (*make)(const OrtApi*, const OrtKernelInfo*, Kernel**),
                                  int cache_type = FLOAT) {
  Operator op = {};
  op.version = ORT_VERSION;
  op.name = name, op.inputs = inputs, op.needed = needed, op.outputs = outputs, op.make = make;
  op.cache_type = cache_type;
  op.get_name = [](const OrtCustomOp* o) { return of(o).name; };
  op.get_provider = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.get_input_type = [](const OrtCustomOp*, size_t) -> int { return ANY_TYPE; };
  op.get_input_count = [](const OrtCustomOp* o) { return of(o).inputs; };
  op.get_output_type = [](const OrtCustomOp* o, size_t i) -> int { return i ? of(o).cache_type : FLOAT; };
  op.get_output_count = [](const OrtCustomOp* o) { return of(o).outputs; };
  op.get_input_presence = [](const OrtCustomOp* o, size_t i) -> int { return i < of(o).needed ? REQUIRED : OPTIONAL; };
  op.get_output_presence = [](const OrtCustomOp*, size_t) -> int { return REQUIRED; };
  op.get_memory_type = [](const OrtCustomOp*, size_t) { return 0; };
  op.get_least_variadic_input = op.get_variadic_input_alike = [](const OrtCustomOp*) { return 0; };
  op.get_least_variadic_output = op.get_variadic_output_alike = [](const OrtCustomOp*) { return 0; };
  op.create_kernel_v2 = create;
  op.compute_v2 = compute<RUN>;
  op.destroy = destroy<DESTROY>;
  op.get_first_version = [](const OrtCustomOp*) { return 1; };
  op.get_last_version = [](const OrtCustomOp*) { return 0x7fffffff; };
  return op;
}

static Operator operators[] = {
    describe_operator<run_linear, destroy_linear>("Linear", 13, 2, 1, create_linear),
    describe_operator<run_normalize, destroy_plain>("Normalize", 3, 1, 1, create_normalize),
    describe_operator<run_embed, destroy_plain>("Embed", 13, 2, 1, create_embed),
    describe_operator<run_attention, destroy_plain>("Attention", 9, 5, 3, create_attention<FLOAT>),
    describe_operator<run_attention, destroy_plain>("AttentionHalf", 9, 5, 3, create_attention<FLOAT16>, FLOAT16),
};

// Choose the kernels (null: the best), the threads and the pages of the sessions that are made from
// now on. Returns the name of the kernels; null if this processor does not have them.
EXPORT const char* gptx_choose(const char* name, int threads, int huge_pages) {
  const Kernels* found = name ? find_kernels(name) : best_kernels();
  if (!found) return nullptr;
  chosen = found;
  chosen_threads = threads > 0 ? threads : 1;
  use_huge_pages = huge_pages != 0;
  forget_packed();
  return chosen->name;
}

// Python compares it with its own number: a library that was built from other sources is not used.
EXPORT int gptx_interface() { return INTERFACE; }

// See use_packed_file.
EXPORT const char* gptx_packed(const char* path, int use) { return use_packed_file(path, (PackedUse)use); }

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->get_api(ORT_VERSION);
  if (!api) return nullptr;
  static OrtCustomOpDomain* domain;  // lives as long as the process, like the library
  if (!domain) {
    stay_loaded();
    if (!chosen) chosen = best_kernels();
    if (Status s = new_domain(api, "gptx", &domain)) return s;
    for (Operator& op : operators)
      if (Status s = add_operator(api, domain, &op)) return s;
  }
  return add_domain(api, options, domain);
}
