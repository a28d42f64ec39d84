// What the operators ask of the kernels: plain structs, and a table of functions for each
// instruction set. A kernel works on a range of its work, so that threads can share it.
#pragma once
#include "numbers.h"

enum Activation { NONE, RELU, GELU, GELU_TANH, SILU };
enum NormKind { NO_NORM, RMS, LAYER };
enum AttentionKind { DOT, COSINE, ADDITIVE };

// A number for each block of each output: a factor times a step that several blocks share, or a
// step alone.
struct Scales {
  int8_t* factors;  // [group][block][16], or null: 1
  float* steps;     // [group][block / blocks_per_step][16]
  uint16_t* halves;  // the steps as floats of 16 bits, in place of `steps`; or null
  int64_t n_steps, blocks_per_step;
};

enum Form { EIGHT, FOUR, FIVE, SIX, TABLE, FLOATS, HALVES };

// A matrix (n_out, n_in), packed in groups of 16 outputs: a lane is an output.
// EIGHT: levels[group][k / 4][16][4], int8.
// FOUR: levels[group][k / 8][16][4], two levels of 0 to 15 a byte: k / 4 even, odd.
// FIVE, SIX: as FOUR; behind them the high bits, [k / 32][16][4] or [k / 16][16][4]: a byte holds
// those of 8 or 4 levels.
// TABLE: as FOUR; a level is a place in `table`.
// FLOATS, HALVES: [group][k][16].
// A weight is (level - zero) * scale or, with offsets, level * scale + offset.
struct Weight {
  int64_t n_out, n_in, n_groups, n_blocks, block;  // n_in padded: n_blocks * block
  int form;
  int64_t group_bytes;
  int8_t* levels;
  float* floats;
  uint16_t* halves;
  Scales scales, offsets;  // offsets: both pointers to steps are null where there are none
  uint8_t* zeros;          // [group][block][16], or null: half of the levels (0 of EIGHT and TABLE)
  int8_t table[16];
};

// Activations of T tokens, as a product takes them.
struct Input {
  int64_t tokens, width;  // width: n_in padded to whole blocks and to 16
  float* floats;          // [T][width], zeros behind n_in
  int terms;              // 0: the product takes the floats; 1: 8 bits; 2: 16 bits in two terms
  char* levels;           // [terms][T][width], in 2 bytes each where the lanes want that
  float* scales;          // [terms][blocks][T]
  float* sums;            // [terms][blocks][T]: of the levels
  int32_t* starts;        // [terms][blocks][T]: what a block's sum starts from (see common_zero)
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
  const float* factor;    // [T][outputs], or null; the activated outputs are multiplied by it
  const float* residual;  // [T][outputs], or null; added last
  float* out;             // [T][outputs]
};

// Consecutive tokens of one row, at consecutive positions, that share the reading of their cache.
struct Run {
  int64_t first, count;
};

struct AttentionTask {
  int64_t tokens, n_head, n_kv_head, head_dim, capacity;  // capacity: a multiple of 16
  int64_t window;                                         // 0: none
  int kind;
  const float* qkv;              // [T][(H + 2 G) D]
  const int64_t *rows, *places;  // [T]: row and position of each token
  const int64_t* starts;         // [R]: first position that a row's tokens see
  const float *cos, *sin;        // [n_ctx][turned / 2], or null
  int64_t turned;                // dimensions of a head that are rotated
  Norm q_norm, k_norm;           // of each head of the queries and keys, before the rotation
  float scale;                   // of the scores of dot attention
  const float* score;            // [H] (cosine), [H][D] (additive), or null
  float softcap;                 // a score becomes softcap * tanh(score / softcap); 0: none
  const float* sinks;            // [H], or null: a score of each head that has no value
  int form;                      // of the cache: FLOATS, HALVES or EIGHT
  void *keys, *values;           // [R][G][capacity / 16][D][16], [R][G][capacity][D]
  float *key_scales, *value_scales;  // [R][G][capacity], of EIGHT
  float* queries;                // [T][H][D]: scratch
  const Run* runs;               // of all tokens
  int64_t n_runs;
  float* partials;  // [T][H][pieces][D + 2]: scratch; null: pieces one after another
  int64_t pieces;
  float* out;            // [T][H D]
  float* probabilities;  // [T][H][capacity], or null
};

static const int64_t MOST_DIMENSIONS = 1024;  // of a head
static const int64_t PIECE = 256;  // keys in a piece of attention; part of the order of sums

struct Kernels {
  const char* name;
  void (*prepare)(LinearTask&, int64_t first, int64_t last);   // norm and rounding of tokens
  void (*multiply)(LinearTask&, int64_t first, int64_t last);  // groups of outputs
  void (*normalize)(const float* x, float* out, int64_t n, const Norm&);
  void (*place)(AttentionTask&, int64_t first, int64_t last);   // rotate, write to the cache
  // items are (run, key-value head) or, with partials, (run, key-value head, piece)
  void (*attend)(AttentionTask&, int64_t first, int64_t last);
  void (*join)(AttentionTask&, int64_t first, int64_t last);    // the pieces of [token][head]
  // of a row of logits (softmax.h)
  double (*exp_weights)(const float* x, int64_t n, float top, float scale, float* out);
  double (*logsumexp)(const float* x, int64_t n);
  double (*logsumexp_doubles)(const double* x, int64_t n);
  void (*exp)(const double* x, int64_t n, double* out);
  void (*log)(const double* x, int64_t n, double* out);
};

// The kernels of an instruction set; null if they were not built, or this processor lacks it.
const Kernels* find_kernels(const char* name);
const Kernels* best_kernels();
