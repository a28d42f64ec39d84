// ids [T] -> rows of a table [T][width], times a mask, plus a residual. The id -1 - e takes row e of
// `embeds` [E][width] in place of the table.
#include "half.h"
#include "operator.h"
#include "pack.h"

struct Embed : Kernel {
  int64_t block;
};

Status create_embed(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
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

Status run_embed(Kernel* kernel, OrtKernelContext* context) {
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
