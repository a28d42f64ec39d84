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

// Floats of 32 or 16 bits, as they are.
template <class T>
static void pack_floats(const Packing& p, int64_t g, T* packed) {
  const Matrix& m = *p.from;
  const T* values = (const T*)m.values;
  T* out = packed + g * m.n_in * 16;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t k = 0; k < m.n_in; k++)
      out[k * 16 + lane] = n < 0 ? 0 : m.layout == Matrix::IN_OUT ? values[k * m.n_out + n] : values[n * m.n_in + k];
  }
}

// The levels of output n and inputs of block b.
static void read_levels(const Matrix& m, const Weight& w, int64_t n, int64_t b, uint8_t* out) {
  const uint8_t* values = (const uint8_t*)m.values;
  if (m.layout == Matrix::CHANNELS) {
    int64_t known = least(w.block, m.n_in - b * w.block);
    for (int64_t k = 0; k < w.block; k++) out[k] = k < known ? values[(b * w.block + k) * m.n_out + n] : 0;
    return;
  }
  int64_t nibbles = w.block / 2, bytes = w.block * m.bits / 8;
  const uint8_t* from = values + (n * w.n_blocks + b) * bytes;
  if (m.bits == 8) {
    for (int64_t k = 0; k < w.block; k++) out[k] = (uint8_t)(from[k] - 128);
    return;
  }
  for (int64_t k = 0; k < w.block; k++) out[k] = from[k / 2] >> (k % 2 * 4) & 15;
  for (int64_t k = 0; m.bits == 5 && k < w.block; k++) out[k] |= (from[nibbles + k / 8] >> k % 8 & 1) << 4;
  for (int64_t k = 0; m.bits == 6 && k < w.block; k++) out[k] |= (from[nibbles + k / 4] >> (k % 4 * 2) & 3) << 4;
}

static void write_levels(const Weight& w, int64_t g, int64_t b, int lane, const uint8_t* levels) {
  int8_t* group = w.levels + g * w.group_bytes + 4 * lane;
  int64_t start = b * w.block;
  if (w.form == EIGHT) {
    for (int64_t k = 0; k < w.block; k += 4) memcpy(group + (start + k) * 16, levels + k, 4);
    return;
  }
  for (int64_t k = 0; k < w.block; k += 8)
    for (int j = 0; j < 4; j++)
      group[(start + k) * 8 + j] = (int8_t)((levels[k + j] & 15) | (levels[k + 4 + j] & 15) << 4);
  if (w.form != FIVE && w.form != SIX) return;
  int64_t in_byte = w.form == FIVE ? 8 : 4, width = 8 / in_byte;
  int8_t* high = group + w.n_blocks * w.block * 8;  // zeros before
  for (int64_t k = 0; k < w.block; k++) {
    int64_t at = start + k;
    high[at / (4 * in_byte) * 64 + at % 4] |= (int8_t)((levels[k] >> 4) << (at / 4 % in_byte * width));
  }
}

static void pack_scales(const Grid& from, const Scales& to, int64_t n, int64_t g, int lane, int64_t n_blocks) {
  for (int64_t b = 0; to.factors && b < n_blocks; b++)
    to.factors[(g * n_blocks + b) * 16 + lane] = n < 0 ? 0 : from.factors[n * n_blocks + b];
  for (int64_t i = 0; i < to.n_steps; i++) {
    int64_t at = (g * to.n_steps + i) * 16 + lane;
    if (to.halves) to.halves[at] = n < 0 ? 0 : from.halves[n * to.n_steps + i];
    else if (to.steps) to.steps[at] = n < 0 ? 0 : from.steps[n * to.n_steps + i] * from.scale;
  }
}

static void pack_levels(const Packing& p, int64_t g) {
  const Matrix& m = *p.from;
  Weight& w = *p.to;
  uint8_t* levels = w.block <= 4096 ? (uint8_t*)__builtin_alloca(w.block) : (uint8_t*)malloc(w.block);
  if (!levels) return;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t b = 0; b < w.n_blocks; b++) {
      if (n < 0) memset(levels, w.form == EIGHT || w.form == TABLE ? 0 : 1 << (m.bits - 1), w.block);
      else read_levels(m, w, n, b, levels);
      write_levels(w, g, b, lane, levels);
      if (!w.zeros) continue;
      int64_t row = n * ((w.n_blocks + 1) / 2);
      w.zeros[(g * w.n_blocks + b) * 16 + lane] = n < 0 ? 8 : m.zeros[row + b / 2] >> (b % 2 * 4) & 15;
    }
    pack_scales(m.scales, w.scales, n, g, lane, w.n_blocks);
    pack_scales(m.offsets, w.offsets, n, g, lane, w.n_blocks);
  }
  if (w.block > 4096) free(levels);
}

static void pack_groups(void* task, int64_t first, int64_t last) {
  const Packing& p = *(const Packing*)task;
  for (int64_t g = first; g < last; g++) {
    if (p.to->form == FLOATS) pack_floats(p, g, p.to->floats);
    else if (p.to->form == HALVES) pack_floats(p, g, p.to->halves);
    else pack_levels(p, g);
  }
}

// Takes `bytes` of memory; before there is memory, only counts them.
struct Cursor {
  char* start;
  int64_t used;
  template <class T>
  T* take(int64_t n) {
    int64_t at = used;
    used += rounded_up(n * (int64_t)sizeof(T), 64);
    return start ? (T*)(start + at) : nullptr;
  }
};

static void lay_out(const Grid& from, Scales* to, const Weight& w, Cursor* memory) {
  if (!from.steps && !from.halves) return;
  to->n_steps = from.n_steps, to->blocks_per_step = from.blocks_per_step;
  if (from.factors) to->factors = memory->take<int8_t>(w.n_groups * w.n_blocks * 16);
  if (from.halves) to->halves = memory->take<uint16_t>(w.n_groups * to->n_steps * 16);
  else to->steps = memory->take<float>(w.n_groups * to->n_steps * 16);
}

static void lay_out(const Matrix& m, Weight* w, Cursor* memory) {
  int64_t floats = w->n_groups * 16 * m.n_in;
  if (w->form == FLOATS) w->floats = memory->take<float>(floats);
  else if (w->form == HALVES) w->halves = memory->take<uint16_t>(floats);
  else w->levels = memory->take<int8_t>(w->n_groups * w->group_bytes);
  lay_out(m.scales, &w->scales, *w, memory);
  lay_out(m.offsets, &w->offsets, *w, memory);
  if (m.zeros) w->zeros = memory->take<uint8_t>(w->n_groups * w->n_blocks * 16);
}

static int form_of(const Matrix& m) {
  if (m.table) return TABLE;
  switch (m.bits) {
    case 4: return FOUR;
    case 5: return FIVE;
    case 6: return SIX;
    case 8: return EIGHT;
    case 16: return HALVES;
    default: return FLOATS;
  }
}

Weight* pack(const Matrix& m, int threads, Piece** piece) {
  Weight* w = (Weight*)calloc(1, sizeof(Weight));
  if (!w) return nullptr;
  int64_t halves = m.gated ? 2 : 1;
  w->n_out = m.n_out, w->n_in = m.n_in, w->form = form_of(m);
  w->n_groups = halves * (rounded_up(m.n_out / halves, 16) / 16);
  w->block = m.layout == Matrix::BLOCKS ? m.block : rounded_up(m.n_in, 16);
  w->n_blocks = rounded_up(m.n_in, w->block) / w->block;
  if (m.table) memcpy(w->table, m.table, sizeof w->table);
  int64_t width = w->n_blocks * w->block;
  w->group_bytes = w->form == EIGHT ? 16 * width : 8 * width;
  if (w->form == FIVE) w->group_bytes += rounded_up(width, 32) * 2;
  if (w->form == SIX) w->group_bytes += width * 4;
  Cursor memory = {};
  lay_out(m, w, &memory);
  memory.start = (char*)take_memory(memory.used, piece);  // zeros
  if (!memory.start) {
    free(w);
    return nullptr;
  }
  memory.used = 0;
  lay_out(m, w, &memory);
  Packing task = {&m, w};
  run_parallel(pack_groups, &task, w->n_groups, 4, threads);
  return w;
}
