// What the operators ask of the kernels: plain structs, and a table of functions for each
// instruction set. A kernel works on a range of its work, so that threads can share it.
#pragma once
#include "numbers.h"

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU };
enum NormKind { NO_NORM, RMS, LAYER };
enum AttentionKind { DOT, COSINE, ADDITIVE };

// A matrix (n_out, n_in), packed in groups of 16 outputs: a lane is an output.
// bits 8:  levels[group][block][k / 4][16][4], int8
// bits 4:  levels[group][block][k / 8][16][4], two levels of 0 to 15 a byte: k / 4 even, odd
// bits 32: floats[group][k][16]
struct Weight {
  int64_t n_out, n_in, n_groups, n_blocks, block;  // n_in padded: n_blocks * block
  int bits;
  int8_t* levels;
  float* floats;
  float* scales;   // [group][block][16]
  uint8_t* zeros;  // [group][block][16], or null: 8 (4 bits), 0 (8 bits)
};

// Activations of T tokens, as a product takes them.
struct Input {
  int64_t tokens, width;  // width: n_in padded to whole blocks and to 16
  float* floats;          // [T][width], zeros behind n_in
  int terms;              // 0: the product takes the floats; 1: 8 bits; 2: 16 bits in two terms
  int8_t* levels;         // [terms][T][width]
  float* scales;          // [terms][T][blocks]
  int32_t* sums;          // [terms][T][blocks]: of the levels
};

struct Norm {
  int kind;
  float epsilon;
  const float *gain, *bias;  // [n_in], or null
};

struct LinearTask {
  const Weight* weight;
  Input input;
  const float* x;  // [T][n_in]
  int64_t n_in;    // not padded
  Norm norm;
  int activation;
  bool gated;             // the outputs are activated(first half) * second half
  const float* bias;      // [n_out], or null
  const float* residual;  // [T][outputs], or null; added last
  float* out;             // [T][outputs]
};

struct AttentionTask {
  int64_t tokens, n_head, n_kv_head, head_dim, capacity;  // capacity: a multiple of 16
  int64_t window;                                         // 0: none
  int kind;
  const float* qkv;               // [T][(H + 2 G) D]
  const int64_t *rows, *places;   // [T]: row and position of each token
  const int64_t* starts;          // [R]: first position that a row's tokens see, or null: 0
  const float *cos, *sin;         // [n_ctx][turned / 2], or null
  int64_t turned;                 // dimensions of a head that are rotated
  const float* score;             // [H] (cosine), [H][D] (additive), or null
  float *keys, *values;           // [R][G][capacity / 16][D][16], [R][G][capacity][D]
  float* queries;                 // [T][H][D]: scratch
  float* partials;                // [T][H][pieces][D + 2]: scratch; null: pieces one after another
  int64_t pieces;
  float* out;                     // [T][H D]
};

static const int64_t PIECE = 256;  // keys in a piece of attention; part of the order of sums

struct Kernels {
  const char* name;
  void (*prepare)(LinearTask&, int64_t first, int64_t last);   // norm and rounding of tokens
  void (*multiply)(LinearTask&, int64_t first, int64_t last);  // groups of outputs
  void (*normalize)(const float* x, float* out, int64_t n, const Norm&);
  void (*place)(AttentionTask&, int64_t first, int64_t last);   // rotate, write to the cache
  void (*attend)(AttentionTask&, int64_t first, int64_t last);  // see attention.h
  void (*join)(AttentionTask&, int64_t first, int64_t last);    // the pieces of [token][head]
};

// The kernels of an instruction set; null if they were not built, or this processor lacks it.
const Kernels* find_kernels(const char* name);
const Kernels* best_kernels();
