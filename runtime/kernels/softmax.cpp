// The functions of softmax.h, for Python: they run on the calling thread.
#include "export.h"
#include "operator.h"

static const Kernels& kernels() {
  static const Kernels* const best = best_kernels();
  return chosen_kernels ? *chosen_kernels : *best;
}

// out[i] = exp((x[i] - top) * scale) of n logits; returns their sum.
EXPORT double gptx_exp_weights(const float* x, int64_t n, float top, float scale, float* out) {
  FloatState state;
  return kernels().exp_weights(x, n, top, scale, out);
}

// log(sum(exp(x))) of each row of n logits: floats, or doubles if `floats` is null.
EXPORT void gptx_logsumexp(const float* floats, const double* doubles, int64_t rows, int64_t n, double* out) {
  FloatState state;
  for (int64_t i = 0; i < rows; i++)
    out[i] = floats ? kernels().logsumexp(floats + i * n, n) : kernels().logsumexp_doubles(doubles + i * n, n);
}

EXPORT void gptx_exp(const double* x, int64_t n, double* out) {
  FloatState state;
  kernels().exp(x, n, out);
}

EXPORT void gptx_log(const double* x, int64_t n, double* out) {
  FloatState state;
  kernels().log(x, n, out);
}
