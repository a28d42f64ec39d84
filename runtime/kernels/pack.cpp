#include "pack.h"

#include <stdlib.h>
#include <string.h>

#include "pool.h"

struct Packing {
  const Matrix* from;
  Weight* to;
};

// The output of the matrix that is lane `lane` of group g; -1: padding.
static int64_t output_of(const Packing& p, int64_t g, int lane) {
  int64_t halves = p.from->gated ? 2 : 1, n = p.from->n_out / halves, groups = p.to->n_groups / halves;
  int64_t column = g % groups * 16 + lane;
  return column < n ? g / groups * n + column : -1;
}

static void pack_floats(const Packing& p, int64_t g) {
  const Matrix& m = *p.from;
  const float* values = (const float*)m.values;
  float* out = p.to->floats + g * m.n_in * 16;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t k = 0; k < m.n_in; k++)
      out[k * 16 + lane] = n < 0 ? 0 : m.layout == Matrix::IN_OUT ? values[k * m.n_out + n] : values[n * m.n_in + k];
  }
}

// The level of output n and input k; 0 (8 bits) or 8 (4 bits) in the padding.
static int level_of(const Matrix& m, const Weight& w, int64_t n, int64_t k) {
  if (n < 0) return w.bits == 4 ? 8 : 0;
  if (m.layout == Matrix::CHANNELS) return k < m.n_in ? ((const int8_t*)m.values)[k * m.n_out + n] : 0;
  const uint8_t* row = (const uint8_t*)m.values + n * w.n_blocks * w.block * w.bits / 8;
  return w.bits == 8 ? row[k] - 128 : row[k / 2] >> (k % 2 * 4) & 15;
}

static void pack_levels(const Packing& p, int64_t g) {
  const Matrix& m = *p.from;
  Weight& w = *p.to;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t b = 0; b < w.n_blocks; b++) {
      int8_t* out = w.levels + (g * w.n_blocks + b) * w.block * 16 * w.bits / 8 + 4 * lane;
      for (int64_t k = 0; k < w.block; k++) {
        int level = level_of(m, w, n, b * w.block + k);
        if (w.bits == 8) out[k / 4 * 64 + k % 4] = (int8_t)level;
        else if (k % 8 < 4) out[k / 8 * 64 + k % 4] = (int8_t)level;
        else out[k / 8 * 64 + k % 4] |= (int8_t)(level << 4);
      }
      int64_t at = (g * w.n_blocks + b) * 16 + lane, from = n * w.n_blocks + b;
      float scale = n < 0 ? 0 : m.layout == Matrix::CHANNELS ? m.float_scales[n] * 127.0f
                            : m.byte_scales ? (float)m.byte_scales[from] * m.steps[n] : m.float_scales[from];
      w.scales[at] = scale;
      if (!w.zeros) continue;
      int64_t row = n * ((w.n_blocks * w.bits + 7) / 8);
      int zero = n < 0 ? 8 : w.bits == 8 ? m.zeros[from] - 128 : m.zeros[row + b / 2] >> (b % 2 * 4) & 15;
      w.zeros[at] = (uint8_t)zero;
    }
  }
}

static void pack_groups(void* task, int64_t first, int64_t last) {
  const Packing& p = *(const Packing*)task;
  for (int64_t g = first; g < last; g++) p.to->bits == 32 ? pack_floats(p, g) : pack_levels(p, g);
}

Weight* pack(const Matrix& m, int threads, Piece** piece) {
  Weight* w = (Weight*)calloc(1, sizeof(Weight));
  if (!w) return nullptr;
  int64_t halves = m.gated ? 2 : 1;
  w->n_out = m.n_out, w->n_in = m.n_in, w->bits = m.bits;
  w->n_groups = halves * (rounded_up(m.n_out / halves, 16) / 16);
  w->block = m.layout == Matrix::BLOCKS ? m.block : rounded_up(m.n_in, 16);
  w->n_blocks = rounded_up(m.n_in, w->block) / w->block;
  int64_t scales = w->n_groups * w->n_blocks * 16;
  int64_t levels = w->n_groups * 16 * w->n_blocks * w->block * w->bits / 8;
  int64_t bytes = m.bits == 32 ? w->n_groups * 16 * m.n_in * 4 : levels + 4 * scales + (m.zeros ? scales : 0);
  char* at = (char*)take_memory(bytes, piece);
  if (!at) {
    free(w);
    return nullptr;
  }
  w->floats = (float*)at;
  if (m.bits != 32) {
    w->levels = (int8_t*)at;
    w->scales = (float*)(at + levels);
    w->zeros = m.zeros ? (uint8_t*)(at + levels + 4 * scales) : nullptr;
  }
  Packing task = {&m, w};
  run_parallel(pack_groups, &task, w->n_groups, 4, threads);
  return w;
}
