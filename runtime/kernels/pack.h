// Pack a matrix from its layout in model.onnx into groups of 16 outputs (see Weight).
#pragma once
#include "kernels.h"
#include "memory.h"

struct Matrix {
  enum Layout { BLOCKS, CHANNELS, IN_OUT, OUT_IN };  // as stored: see the fields
  int layout;
  int64_t n_out, n_in, block;  // block: of BLOCKS
  int bits;                    // 8 or 4 (BLOCKS), 8 (CHANNELS), 32
  // BLOCKS: uint8 [n_out][blocks][block * bits / 8], level + 128 or two levels of 0 to 15 a byte.
  // CHANNELS: int8 [n_in][n_out]. IN_OUT, OUT_IN: floats.
  const void* values;
  const float* float_scales;  // [n_out][blocks], or [n_out] (CHANNELS)
  const int8_t* byte_scales;  // [n_out][blocks], to be multiplied by steps [n_out]; or null
  const float* steps;
  const uint8_t* zeros;  // BLOCKS: [n_out][blocks], or two of 4 bits a byte; or null
  bool gated;            // the outputs are two halves, each padded to whole groups
};

// Null if there is no memory for it.
Weight* pack(const Matrix&, int threads, Piece**);
