// x (.., n) -> norm(x), (.., n)
#include "operator.h"

struct Normalize : Kernel {
  Norm norm;
};

Status create_normalize(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
  Normalize* k = (Normalize*)calloc(1, sizeof(Normalize));
  if (!k) return error(api, "gptx.Normalize: no memory");
  k->norm = norm_of(api, info);
  *out = k;
  return nullptr;
}

Status run_normalize(Kernel* kernel, OrtKernelContext* context) {
  Normalize& k = *(Normalize*)kernel;
  Tensor x, gain, shift;
  if (Status s = inputs(k.api, context, {{0, &x}, {1, &gain}, {2, &shift}})) return s;
  int64_t n = x.last();
  if (x.type != FLOAT || !x.rank || n <= 0 || (gain.data && !is(gain, FLOAT, n)) || (shift.data && !is(shift, FLOAT, n)))
    return error(k.api, "gptx.Normalize: an input has a wrong type or shape");
  void* out;
  if (Status s = output(k.api, context, 0, x.shape, x.rank, &out)) return s;
  Norm norm = k.norm;
  norm.gain = gain.floats(), norm.bias = shift.floats();
  FloatState state;
  for (int64_t t = 0; t < x.count() / n; t++) k.kernels->normalize(x.floats() + t * n, (float*)out + t * n, n, norm);
  return nullptr;
}
