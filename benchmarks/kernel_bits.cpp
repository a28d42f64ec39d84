// Random cases for the kernels of one instruction set: prints four hashes for each case, of its
// product, of its attention, of a product whose weights are packed here, and of the weights and the
// logsumexp of a row of logits. kernel_bits.py compares those of several instruction sets and
// processors.
//
//   kernel_bits NAME CASES [FIRST]    NAME best: those that this processor would choose
//
// Compiled with -DONLY=gptx_kernels_..., it has these kernels alone, and does not ask the processor.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/kernels/kernels.h"
#include "../runtime/kernels/pack.h"
#include "../runtime/kernels/pool.h"

static uint64_t state;
static uint32_t draw() { return (uint32_t)((state = state * 6364136223846793005u + 1442695040888963407u) >> 33); }
static int64_t below(int64_t n) { return draw() % n; }
static float number() {  // mostly about 1; sometimes zero, subnormal, tiny or huge
  float x = ((int32_t)draw() - (1 << 30)) * 9.3e-10f;
  switch (below(200)) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return 1e-41f;
    case 3: return x * 1e-36f;
    case 4: return x * 1e3f;
    default: return x;
  }
}
static float* numbers(int64_t n) {
  float* p = (float*)malloc(n * sizeof(float));
  for (int64_t i = 0; i < n; i++) p[i] = number();
  return p;
}

static const uint64_t EMPTY = 14695981039346656037u;
static uint64_t hash;
static int64_t differing;  // cases whose result depends on how tokens and pieces are cut
static int64_t misread;    // cases whose offsets are others than those in the stored columns
static void add(const double* p, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint64_t bits;
    memcpy(&bits, p + i, 8);
    if (p[i] != p[i]) bits = 0x7ff8ull << 48;
    hash = (hash ^ bits) * 1099511628211u;
  }
}
static void add(const float* p, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, p + i, 4);
    if (p[i] != p[i]) bits = 0x7fc00000;  // the bits of NaN are not promised
    hash = (hash ^ bits) * 1099511628211u;
  }
}

static int8_t* bytes(int64_t n) {
  int8_t* p = (int8_t*)malloc(n);
  for (int64_t i = 0; i < n; i++) p[i] = (int8_t)draw();
  return p;
}
static uint16_t* halves(int64_t n) {  // no infinity, no NaN
  uint16_t* p = (uint16_t*)malloc(2 * n);
  for (int64_t i = 0; i < n; i++) p[i] = (uint16_t)(draw() & 0xbbff);
  return p;
}
static Scales scales(const Weight& w) {
  Scales s = {};
  s.n_steps = w.n_blocks, s.blocks_per_step = 1;
  if (below(2)) {  // bytes with a step for several blocks
    s.factors = bytes(w.n_groups * w.n_blocks * 16);
    s.blocks_per_step = 1 + below(w.n_blocks);
    s.n_steps = (w.n_blocks + s.blocks_per_step - 1) / s.blocks_per_step;
  }
  int64_t n = w.n_groups * s.n_steps * 16;
  if (below(2)) s.halves = halves(n);
  else s.steps = numbers(n);
  return s;
}
static void release(const Scales& s) { free(s.factors), free(s.steps), free(s.halves); }

// The product of a random x with `w`.
static void product(const Kernels* k, const Weight& w, bool gated, bool floats) {
  LinearTask t = {};
  int64_t tokens = 1 + below(14), width = w.n_blocks * w.block;
  int terms = floats ? 0 : (int)below(3);
  t.weight = &w, t.n_in = w.n_in, t.gated = gated, t.activation = (int)below(5);
  t.input = {tokens, width, numbers(tokens * width), terms, (char*)malloc(4 * tokens * width),
             numbers(2 * tokens * w.n_blocks), numbers(2 * tokens * w.n_blocks),
             (int32_t*)malloc(8 * tokens * w.n_blocks)};
  t.norm = {(int)below(3), 1e-5f, below(2) ? numbers(w.n_in) : nullptr, below(2) ? numbers(w.n_in) : nullptr};
  int64_t outputs = gated ? w.n_out / 2 : w.n_out;
  t.x = numbers(tokens * w.n_in), t.bias = below(2) ? numbers(w.n_out) : nullptr;
  t.residual = below(2) ? numbers(tokens * outputs) : nullptr;
  t.out = numbers(tokens * outputs);
  k->prepare(t, 0, tokens);
  int64_t groups = gated ? w.n_groups / 2 : w.n_groups, cut = below(groups + 1);
  k->multiply(t, cut, groups);
  k->multiply(t, 0, cut);
  add(t.out, tokens * outputs);
  free(t.input.floats), free(t.input.levels), free(t.input.scales), free(t.input.sums), free(t.input.starts);
  free((void*)t.norm.gain), free((void*)t.norm.bias), free((void*)t.x), free((void*)t.bias);
  free((void*)t.residual), free(t.out);
}

static void linear(const Kernels* k) {
  Weight w = {};
  w.form = (int)below(7);
  bool gated = below(3) == 0, floats = w.form == FLOATS || w.form == HALVES;
  w.n_out = 2 * (1 + below(40)), w.n_in = 1 + below(160);
  w.n_groups = gated ? 2 * (rounded_up(w.n_out / 2, 16) / 16) : rounded_up(w.n_out, 16) / 16;
  w.block = floats || below(4) == 0 ? rounded_up(w.n_in, 16) : (int64_t)16 << below(4);
  w.n_blocks = rounded_up(w.n_in, w.block) / w.block;
  int64_t width = w.n_blocks * w.block;
  w.group_bytes = w.form == EIGHT ? 16 * width : 8 * width;
  if (w.form == FIVE) w.group_bytes += rounded_up(width, 32) * 2;
  if (w.form == SIX) w.group_bytes += width * 4;
  for (int i = 0; i < 16; i++) w.table[i] = (int8_t)draw();
  if (w.form == FLOATS) {
    w.floats = numbers(w.n_groups * 16 * w.n_in);
  } else if (w.form == HALVES) {
    w.halves = halves(w.n_groups * 16 * w.n_in);
  } else {
    w.levels = bytes(w.n_groups * w.group_bytes);
    w.scales = scales(w);
    if (below(3) == 0) w.offsets = scales(w);
    else if (w.form == FOUR && below(2)) {
      w.zeros = (uint8_t*)bytes(w.n_groups * w.n_blocks * 16);
      for (int64_t i = 0; i < w.n_groups * w.n_blocks * 16; i++) w.zeros[i] &= 15;
    }
  }
  product(k, w, gated, floats);
  free(w.floats), free(w.halves), free(w.levels), free(w.zeros);
  release(w.scales), release(w.offsets);
}

// Pack `m`, and multiply with it.
static void packed_product(const Kernels* k, const Matrix& m) {
  Piece* piece;
  Weight* w = pack(m, "", 1, &piece);
  if (!w) abort();
  product(k, *w, m.gated, false);
  release_memory(piece);
  free(w);
}

// Offsets in columns behind the weights, and the same offsets as numbers: the bits must be equal.
static void offsets_in_columns(const Kernels* k) {
  Matrix m = {};
  m.bits = 4, m.block = (int64_t)16 << below(4), m.n_in = m.block * (1 + below(7)), m.copies = 1 + below(20);
  m.n_out = 2 * (1 + below(40)), m.gated = below(3) == 0;
  int64_t blocks = m.n_in / m.block, stored = stored_blocks(m), bytes_of_row = stored * m.block / 2;
  uint8_t* levels = (uint8_t*)bytes(m.n_out * bytes_of_row);
  float* steps = numbers(m.n_out * stored);
  m.values = levels, m.scales = {nullptr, steps, nullptr, 1, stored, 1};
  uint64_t before = state, found = hash;
  packed_product(k, m);

  uint8_t* whole = (uint8_t*)malloc(m.n_out * m.n_in / 2);
  float *scales = (float*)malloc(m.n_out * blocks * 4), *offsets = (float*)malloc(m.n_out * blocks * 4);
  for (int64_t n = 0; n < m.n_out; n++) {
    memcpy(whole + n * m.n_in / 2, levels + n * bytes_of_row, m.n_in / 2);
    for (int64_t b = 0; b < blocks; b++) {
      double offset = scales[n * blocks + b] = steps[n * stored + b];
      offset *= -8;
      for (int64_t at = m.n_in + b; at < m.n_in + m.copies * blocks; at += blocks) {
        int level = levels[n * bytes_of_row + at / 2] >> (at & 1 ? 4 : 0) & 15;
        offset += (level - 8.0) * steps[n * stored + at / m.block];
      }
      offsets[n * blocks + b] = (float)offset;
    }
  }
  m.copies = 0, m.values = whole;
  m.scales = {nullptr, scales, nullptr, 1, blocks, 1}, m.offsets = {nullptr, offsets, nullptr, 1, blocks, 1};
  uint64_t in_columns = hash;
  state = before, hash = found;
  packed_product(k, m);
  if (hash != in_columns) misread++;
  free(levels), free(steps), free(whole), free(scales), free(offsets);
}

// Most cases are small, so that many shapes are tried; one of 64 is not. Counted in multiply-adds.
// Additive attention has a tanh for each of them, which is about 20.
static void shrink(AttentionTask& t) {
  int64_t most = below(64) ? 200000 : 5000000;
  while (t.tokens * t.n_head * t.capacity * t.head_dim * (t.kind == ADDITIVE ? 20 : 1) > most) {
    int64_t shared = t.n_head / t.n_kv_head;
    switch (below(4)) {
      case 0: t.tokens = (t.tokens + 1) / 2; break;
      case 1: t.head_dim = (t.head_dim + 1) / 2; break;
      case 2: t.n_kv_head = (t.n_kv_head + 1) / 2; break;
      case 3: shared = (shared + 1) / 2; break;
    }
    t.n_head = t.n_kv_head * shared;
  }
}

// The scales of a cache of levels; NaN behind the first `length` positions.
static float* scales_of_heads(int64_t n, int64_t capacity, int64_t length) {
  float* p = numbers(n);
  for (int64_t i = 0; i < n; i++) p[i] = i % capacity < length ? p[i] * 0.01f : __builtin_nanf("");
  return p;
}

static void attention(const Kernels* k) {
  AttentionTask t = {};
  t.n_kv_head = 1 + below(3), t.n_head = t.n_kv_head * (1 + below(9)), t.head_dim = 1 + below(70);
  t.capacity = 16 * (1 + below(40)), t.kind = (int)below(3), t.window = below(3) ? 0 : 1 + below(300);
  const int forms[] = {FLOATS, HALVES, EIGHT};
  t.form = forms[below(3)];
  int64_t n_rows = 1 + below(2), start = below(t.capacity);
  t.tokens = 1 + below(least(40, t.capacity - start));
  shrink(t);
  int64_t d = t.head_dim;
  int64_t *rows = (int64_t*)malloc(8 * t.tokens), *places = (int64_t*)malloc(8 * t.tokens), row = below(n_rows);
  int64_t starts[2] = {0, 0};
  starts[row] = below(3) ? 0 : below(start + 1);
  for (int64_t i = 0; i < t.tokens; i++) rows[i] = row, places[i] = start + i;
  t.rows = rows, t.places = places, t.starts = starts;
  t.qkv = numbers(t.tokens * (t.n_head + 2 * t.n_kv_head) * d);
  if (d > 1 && below(2)) {
    t.turned = 2 * (1 + below(d / 2));
    t.cos = numbers(t.capacity * t.turned / 2), t.sin = numbers(t.capacity * t.turned / 2);
  }
  t.score = numbers(t.n_head * d);
  t.scale = 1.0f / __builtin_sqrtf((float)d) * (1 + below(3)), t.softcap = below(3) ? 0.0f : 1.0f + below(9);
  if (below(2)) t.q_norm = {RMS, 1e-6f, numbers(d), nullptr};
  if (below(2)) t.k_norm = {RMS, 1e-6f, numbers(d), nullptr};
  if (below(3) == 0) t.sinks = numbers(t.n_head);
  int64_t heads = n_rows * t.n_kv_head * t.capacity, cached = heads * d, out = t.tokens * t.n_head * d;
  if (t.form == EIGHT) {
    t.keys = bytes(cached), t.values = bytes(cached), t.key_scales = scales_of_heads(heads, t.capacity, start);
    t.value_scales = scales_of_heads(heads, t.capacity, start);
  } else if (t.form == HALVES) {
    t.keys = halves(cached), t.values = halves(cached);
  } else {
    t.keys = numbers(cached), t.values = numbers(cached);
  }
  int64_t seen = below(3) ? 0 : t.tokens * t.n_head * t.capacity;  // probabilities
  t.queries = numbers(out), t.out = numbers(out), t.probabilities = seen ? numbers(seen) : nullptr;
  t.pieces = (start + t.tokens + PIECE - 1) / PIECE;
  k->place(t, 0, t.tokens);
  Run* runs = (Run*)malloc(t.tokens * sizeof(Run));
  t.runs = runs;
  for (int64_t at = 0; at < t.tokens; at += runs[t.n_runs++].count)
    runs[t.n_runs] = {at, 1 + below(least(20, t.tokens - at))};
  k->attend(t, 0, t.n_runs * t.n_kv_head);
  add(t.out, out), add(t.probabilities, seen);
  for (int64_t i = 0; t.form == EIGHT && i < cached; i++) hash = (hash ^ ((uint8_t*)t.keys)[i]) * 1099511628211u;
  if (t.form == EIGHT) add(t.key_scales, heads), add(t.value_scales, heads);
  for (t.n_runs = 0; t.n_runs < t.tokens; t.n_runs++) runs[t.n_runs] = {t.n_runs, 1};  // token by token
  t.partials = numbers(t.tokens * t.n_head * t.pieces * (d + 2));                      // and the pieces apart
  float *joined = t.out, *joined_probabilities = t.probabilities;
  t.out = numbers(out), t.probabilities = seen ? numbers(seen) : nullptr;
  k->attend(t, 0, t.n_runs * t.n_kv_head * t.pieces);
  k->join(t, 0, t.tokens * t.n_head);
  if (memcmp(joined, t.out, out * sizeof(float))) differing++;
  if (seen && memcmp(joined_probabilities, t.probabilities, seen * sizeof(float))) differing++;
  free(rows), free(places), free(runs), free((void*)t.qkv), free((void*)t.cos), free((void*)t.sin);
  free((void*)t.q_norm.gain), free((void*)t.k_norm.gain), free((void*)t.sinks), free(t.key_scales);
  free(t.value_scales), free(t.probabilities), free(joined_probabilities);
  free((void*)t.score), free(t.keys), free(t.values), free(t.queries), free(t.out), free(t.partials), free(joined);
}

// Weights and logsumexp of a row of logits, exp and log of the same numbers as doubles. Some are
// -infinity; in one row of eight some are infinite or NaN too.
static void softmax(const Kernels* k) {
  int64_t n = 1 + below(below(16) ? 200 : 5000);
  float *x = numbers(n), *weights = numbers(n), spread = (float)(1 << below(8)), top = -__builtin_inff();
  double *doubles = (double*)malloc(8 * n), *out = (double*)malloc(8 * n);
  bool damaged = below(8) == 0;
  for (int64_t i = 0; i < n; i++) {
    x[i] *= spread;
    if (below(20) == 0) x[i] = -__builtin_inff();
    if (damaged && below(20) == 0) x[i] = below(2) ? __builtin_inff() : __builtin_nanf("");
    if (x[i] > top) top = x[i];
    doubles[i] = x[i] * (1 + draw() * 1e-12);
  }
  double sums[] = {k->exp_weights(x, n, top, 1 / (0.01f + (float)below(300) * 0.01f), weights), k->logsumexp(x, n),
                   k->logsumexp_doubles(doubles, n)};
  add(weights, n), add(sums, 3);
  k->exp(doubles, n, out);
  add(out, n);
  for (int64_t i = 0; i < n; i++) doubles[i] = below(3) ? out[i] : doubles[i];
  k->log(doubles, n, out);
  add(out, n);
  free(x), free(weights), free(doubles), free(out);
}

#ifdef ONLY
extern const Kernels* const ONLY;
static const Kernels* named(const char*) { return ONLY; }
#else
static const Kernels* named(const char* name) { return strcmp(name, "best") ? find_kernels(name) : best_kernels(); }
#endif

int main(int argc, char** argv) {
  const Kernels* k = argc > 2 ? named(argv[1]) : nullptr;
  if (!k) return puts("this processor lacks them"), 2;
  puts(k->name);
  set_float_state();
  int64_t first = argc > 3 ? atoi(argv[3]) : 0;
  for (int64_t n = first; n < first + atoi(argv[2]); n++) {
    state = (uint64_t)n * 977 + 5;
    draw();
    hash = EMPTY;
    linear(k);
    printf("%016llx ", (unsigned long long)hash);
    hash = EMPTY;
    attention(k);
    printf("%016llx ", (unsigned long long)hash);
    hash = EMPTY;
    offsets_in_columns(k);
    printf("%016llx ", (unsigned long long)hash);
    hash = EMPTY;
    softmax(k);
    printf("%016llx\n", (unsigned long long)hash);
  }
  if (differing) fprintf(stderr, "%lld cases depend on how tokens and pieces are cut\n", (long long)differing);
  if (misread) fprintf(stderr, "%lld cases read other offsets than are stored\n", (long long)misread);
  return differing || misread ? 1 : 0;
}
