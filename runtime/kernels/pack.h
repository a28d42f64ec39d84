// Pack a matrix from its layout in a model file into groups of 16 outputs (see Weight).
#pragma once
#include "kernels.h"
#include "memory.h"

// The numbers of a Scales, as stored: factors [n_out][blocks], steps [n_out][n_steps].
struct Grid {
  const int8_t* factors;   // or null
  const float* steps;      // or null: halves
  const uint16_t* halves;  // floats of 16 bits; or null: steps
  float scale;             // of the steps
  int64_t n_steps, blocks_per_step;
};

static const int64_t LONGEST_BLOCK = 2048;

struct Matrix {
  enum Layout { BLOCKS, CHANNELS, IN_OUT, OUT_IN };  // as stored: see the fields
  int layout;
  int64_t n_out, n_in, block;  // block: of BLOCKS
  int bits;                    // 4, 5, 6 or 8 (BLOCKS), 8 (CHANNELS), 16 or 32
  // BLOCKS: uint8 [n_out][blocks][block * bits / 8]. 8 bits: level + 128. Others: the low 4 bits of
  // the levels, two a byte, and behind them their high bits: 8 levels a byte (5 bits), 4 (6 bits).
  // CHANNELS: int8 [n_in][n_out]. IN_OUT, OUT_IN: floats of 32 or 16 bits.
  const void* values;
  Grid scales, offsets;  // offsets: BLOCKS, or empty
  const uint8_t* zeros;  // BLOCKS of 4 bits: two a byte, [n_out][(blocks + 1) / 2]; or null
  const int8_t* table;   // BLOCKS of 4 bits: the level that each number stands for; or null
  bool gated;            // the outputs are two halves, each padded to whole groups
  // BLOCKS of 4 bits: columns of a row behind n_in hold the offsets of its blocks, in `copies`
  // parts of a column a block; an offset is the sum of its parts. 0: there are none.
  int64_t copies;
};

// Blocks of a stored row. Those behind the first n_in columns hold offsets.
static inline int64_t stored_blocks(const Matrix& m) {
  int64_t columns = m.n_in + (m.copies ? m.copies * (m.n_in / m.block) : 0);
  return (columns + m.block - 1) / m.block;
}

// The weight of the node `name`, packed on up to `threads` threads or taken from the file in use
// (see packed_file.h). Null if there is no memory for it, or the file lacks it.
Weight* pack(const Matrix&, const char* name, int threads, Piece**);
