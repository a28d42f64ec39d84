#include "pack.h"

#include <stdlib.h>
#include <string.h>

#include "packed_file.h"
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
  int64_t step = m.layout == Matrix::IN_OUT ? m.n_out : 1;  // from an input to the next
  const T* columns[16];
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    columns[lane] = n < 0 ? nullptr : (const T*)m.values + (m.layout == Matrix::IN_OUT ? n : n * m.n_in);
  }
  T* out = packed + g * m.n_in * 16;
  for (int64_t k = 0; k < m.n_in; k++)
    for (int lane = 0; lane < 16; lane++) *out++ = columns[lane] ? columns[lane][k * step] : 0;
}

// The levels of output n and inputs of block b, of 5 or 6 bits.
static void read_levels(const Matrix& m, const Weight& w, int64_t n, int64_t b, uint8_t* out) {
  const uint8_t* values = (const uint8_t*)m.values;
  int64_t nibbles = w.block / 2, bytes = w.block * m.bits / 8;
  const uint8_t* from = values + (n * w.n_blocks + b) * bytes;
  for (int64_t k = 0; k < w.block; k++) out[k] = from[k / 2] >> (k % 2 * 4) & 15;
  for (int64_t k = 0; m.bits == 5 && k < w.block; k++) out[k] |= (from[nibbles + k / 8] >> k % 8 & 1) << 4;
  for (int64_t k = 0; m.bits == 6 && k < w.block; k++) out[k] |= (from[nibbles + k / 4] >> (k % 4 * 2) & 3) << 4;
}

static void write_levels(const Weight& w, int64_t g, int64_t b, int lane, const uint8_t* levels) {
  int8_t* group = w.levels + g * w.group_bytes + 4 * lane;
  int64_t start = b * w.block, in_byte = w.form == FIVE ? 8 : 4, width = 8 / in_byte;
  for (int64_t k = 0; k < w.block; k += 8)
    for (int j = 0; j < 4; j++)
      group[(start + k) * 8 + j] = (int8_t)((levels[k + j] & 15) | (levels[k + 4 + j] & 15) << 4);
  int8_t* high = group + w.n_blocks * w.block * 8;  // zeros before
  for (int64_t k = 0; k < w.block; k++) {
    int64_t at = start + k;
    high[at / (4 * in_byte) * 64 + at % 4] |= (int8_t)((levels[k] >> 4) << (at / 4 % in_byte * width));
  }
}

// Weights with a scale a channel: int8 [n_in][n_out].
static void pack_channels(const Packing& p, int64_t g) {
  const Matrix& m = *p.from;
  int8_t* out = p.to->levels + g * p.to->group_bytes;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t k = 0; n >= 0 && k < m.n_in; k++)
      out[k / 4 * 64 + 4 * lane + k % 4] = ((const int8_t*)m.values)[k * m.n_out + n];
  }
}

static void pack_scales(const Grid& from, const Scales& to, int64_t n, int64_t g, int lane, int64_t n_blocks) {
  for (int64_t b = 0; to.factors && b < n_blocks; b++)
    to.factors[(g * n_blocks + b) * 16 + lane] = n < 0 ? 0 : from.factors[n * n_blocks + b];
  for (int64_t i = 0; i < to.n_steps; i++) {
    int64_t at = (g * to.n_steps + i) * 16 + lane;
    if (to.halves) to.halves[at] = n < 0 ? 0 : from.halves[n * from.n_steps + i];
    else if (to.steps) to.steps[at] = n < 0 ? 0 : from.steps[n * from.n_steps + i] * from.scale;
  }
}

// Four stored bytes -> four bytes of a lane: 4 levels of 8 bits, or 8 levels of 4 bits.
static uint32_t word_of(const uint8_t* from, int bits) {
  uint32_t v;
  memcpy(&v, from, 4);
  if (bits == 8) return v ^ 0x80808080u;
  // levels k, k + 1 of a byte -> levels k, k + 4
  uint32_t low = v & 0x0f0f0f0fu, high = v >> 4 & 0x0f0f0f0fu;
  uint32_t even = (low & 0xff) | (low >> 16 & 0xff) << 4, odd = (high & 0xff) | (high >> 16 & 0xff) << 4;
  uint32_t even2 = (low >> 8 & 0xff) | (low >> 24) << 4, odd2 = (high >> 8 & 0xff) | (high >> 24) << 4;
  return even | odd << 8 | even2 << 16 | odd2 << 24;
}

// All levels of a group, in blocks of 8 or 4 bits.
static void pack_words(const Packing& p, int64_t g) {
  const Matrix& m = *p.from;
  const Weight& w = *p.to;
  int64_t bytes = w.n_blocks * w.block * m.bits / 8, row = stored_blocks(m) * w.block * m.bits / 8;
  uint32_t padding = w.form == FOUR ? 0x88888888u : 0;
  const uint8_t* rows[16];
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    rows[lane] = n < 0 ? nullptr : (const uint8_t*)m.values + n * row;
  }
  uint32_t* out = (uint32_t*)(w.levels + g * w.group_bytes);
  for (int64_t at = 0; at < bytes; at += 4)
    for (int lane = 0; lane < 16; lane++) *out++ = rows[lane] ? word_of(rows[lane] + at, m.bits) : padding;
}

// All levels of a group, of 5 or 6 bits.
static void pack_levels(const Packing& p, int64_t g, uint8_t* levels) {
  const Weight& w = *p.to;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t b = 0; n >= 0 && b < w.n_blocks; b++) {
      read_levels(*p.from, w, n, b, levels);
      write_levels(w, g, b, lane, levels);
    }
  }
}

// The offset of block b of output n, for levels that are not negative. Each part is a level minus 8,
// times the scale of its own block. These products are exact in double, whatever the compiler.
static float offset_of(const Matrix& m, int64_t n, int64_t b, int64_t n_blocks) {
  int64_t row = n * stored_blocks(m);
  double offset = -8.0 * m.scales.steps[row + b];
  for (int64_t i = 0; i < m.copies; i++) {
    int64_t column = m.n_in + i * n_blocks + b, at = row * m.block + column;
    int level = ((const uint8_t*)m.values)[at / 2] >> (at % 2 * 4) & 15;
    offset += (double)(level - 8) * m.scales.steps[row + column / m.block];
  }
  return (float)offset;
}

static void pack_offsets(const Packing& p, int64_t g) {
  const Weight& w = *p.to;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane);
    for (int64_t b = 0; b < w.n_blocks; b++)
      w.offsets.steps[(g * w.n_blocks + b) * 16 + lane] = n < 0 ? 0 : offset_of(*p.from, n, b, w.n_blocks);
  }
}

static void pack_scales(const Packing& p, int64_t g) {
  const Matrix& m = *p.from;
  const Weight& w = *p.to;
  for (int lane = 0; lane < 16; lane++) {
    int64_t n = output_of(p, g, lane), row = n * ((w.n_blocks + 1) / 2);
    pack_scales(m.scales, w.scales, n, g, lane, w.n_blocks);
    if (!m.copies) pack_scales(m.offsets, w.offsets, n, g, lane, w.n_blocks);
    for (int64_t b = 0; w.zeros && b < w.n_blocks; b++)
      w.zeros[(g * w.n_blocks + b) * 16 + lane] = n < 0 ? 8 : m.zeros[row + b / 2] >> (b % 2 * 4) & 15;
  }
}

static void pack_groups(void* task, int64_t first, int64_t last) {
  const Packing& p = *(const Packing*)task;
  const Matrix& m = *p.from;
  uint8_t levels[LONGEST_BLOCK];
  for (int64_t g = first; g < last; g++) {
    if (p.to->form == FLOATS) pack_floats(p, g, p.to->floats);
    else if (p.to->form == HALVES) pack_floats(p, g, p.to->halves);
    else if (m.layout == Matrix::CHANNELS) pack_channels(p, g);
    else if (m.bits == 8 || m.bits == 4) pack_words(p, g);
    else pack_levels(p, g, levels);
    if (m.bits < 16) pack_scales(p, g);
    if (m.copies) pack_offsets(p, g);
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
  to->n_steps = least(from.n_steps, w.n_blocks), to->blocks_per_step = from.blocks_per_step;
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
  if (m.copies) {
    w->offsets.n_steps = w->n_blocks, w->offsets.blocks_per_step = 1;
    w->offsets.steps = memory->take<float>(w->n_groups * w->n_blocks * 16);
  }
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

Weight* pack(const Matrix& m, const char* name, int threads, Piece** piece) {
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
  int64_t bytes = memory.used;
  bool is_packed = reads_packed_file();
  memory.start = is_packed ? read_packed(name, m, *w, bytes, threads, piece) : (char*)take_memory(bytes, piece);
  if (!memory.start) {
    free(w);
    return nullptr;
  }
  memory.used = 0;
  lay_out(m, w, &memory);
  if (is_packed) return w;
  Packing task = {&m, w};  // the memory holds zeros
  run_parallel(pack_groups, &task, w->n_groups, 4, threads);
  write_packed(name, m, *w, memory.start, bytes);
  return w;
}
