// x (.., n_in) -> activated(norm(x) W^T + bias) * factor + residual, (.., outputs)
#include "operator.h"
#include "pack.h"
#include "packed_file.h"

struct Linear : Kernel {
  Weight* weight;
  Piece* piece;
  Norm norm;
  int terms, activation;
  bool gated;
};

bool read_grid(const Tensor& values, const Tensor& steps, int64_t n_out, int64_t blocks, Grid* out) {
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

Status create_linear(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
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
  FloatState state;  // the packed weights must be the same in all processes
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

Status run_linear(Kernel* kernel, OrtKernelContext* context) {
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
  Call<LinearTask> call = {};
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
  call.run<&Kernels::prepare>(tokens, most(1, 4096 / width), tokens * width < 8192 ? 1 : k.threads);
  int64_t groups = k.gated ? w.n_groups / 2 : w.n_groups, chunks = 6 * k.threads;
  call.run<&Kernels::multiply>(groups, rounded_up((groups + chunks - 1) / chunks, 2), k.threads);
  return nullptr;
}

void destroy_linear(Kernel* kernel) {
  Linear* k = (Linear*)kernel;
  release_memory(k->piece);
  free(k->weight);
  free(k);
}
