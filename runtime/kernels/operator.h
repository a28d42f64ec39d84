// What the operators share: reading inputs and attributes, scratch memory, and the kernel of a node.
//
// Each call checks its inputs; a wrong one ends in an ONNX Runtime error. Scratch memory belongs to
// the call, so several threads may run one session.
#pragma once
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "ort_api.h"
#include "pool.h"

struct Tensor {
  int type;
  size_t rank;
  int64_t shape[4];
  void* data;
  const float* floats() const { return (const float*)data; }
  int64_t count() const {
    int64_t n = 1;
    for (size_t i = 0; i < rank; i++) n *= shape[i];
    return n;
  }
  int64_t last() const { return rank ? shape[rank - 1] : 1; }
};

static inline bool is(const Tensor& t, int type, int64_t count) { return t.data && t.type == type && t.count() == count; }

// An input's place, and where its tensor goes.
struct Wanted {
  size_t place;
  Tensor* tensor;
};

static inline Status describe(const OrtApi* api, const OrtValue* value, Tensor* out) {
  *out = {};
  if (!value) return nullptr;
  OrtTensorTypeAndShapeInfo* info;
  if (Status s = type_and_shape(api, value, &info)) return s;
  Status s = type_of(api, info, &out->type);
  if (!s) s = rank_of(api, info, &out->rank);
  if (!s && out->rank > 4) s = error(api, "gptx: a tensor of more than 4 dimensions");
  if (!s) s = shape_of(api, info, out->shape, out->rank);
  release(api, info);
  return s ? s : data_of(api, value, &out->data);
}

static inline Status input(const OrtApi* api, const OrtKernelContext* context, size_t i, Tensor* out) {
  const OrtValue* value;
  if (Status s = get_input(api, context, i, &value)) return s;
  return describe(api, value, out);
}

static inline Status constant(const OrtApi* api, const OrtKernelInfo* info, size_t i, Tensor* out) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  *out = {};
  if (Status s = constant_input(api, info, i, &is_constant, &value)) {  // the input is left out
    release(api, s);
    return nullptr;
  }
  return is_constant ? describe(api, value, out) : nullptr;
}

template <size_t N>
static inline Status inputs(const OrtApi* api, const OrtKernelContext* context, const Wanted (&wanted)[N]) {
  for (const Wanted& one : wanted)
    if (Status s = input(api, context, one.place, one.tensor)) return s;
  return nullptr;
}

template <size_t N>
static inline Status constants(const OrtApi* api, const OrtKernelInfo* info, const Wanted (&wanted)[N]) {
  for (const Wanted& one : wanted)
    if (Status s = constant(api, info, one.place, one.tensor)) return s;
  return nullptr;
}

// *out is null if the output is left out.
template <class T>
static inline Status output(const OrtApi* api, OrtKernelContext* context, size_t i, const int64_t* shape, size_t rank,
                            T** out) {
  OrtValue* value;
  void* data = nullptr;
  if (Status s = get_output(api, context, i, shape, rank, &value)) return s;
  Status s = value ? data_of(api, value, &data) : nullptr;
  *out = (T*)data;
  return s;
}

static inline int64_t number(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t otherwise) {
  int64_t value;
  Status s = attribute(api, info, name, &value);
  if (s) release(api, s);
  return s ? otherwise : value;
}

// A float attribute. One that was written as a whole number is of the other type.
static inline float real_number(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  float value;
  Status s = attribute(api, info, name, &value);
  if (s) release(api, s);
  return s ? (float)number(api, info, name, 0) : value;
}

// Sets the floating-point state that every result depends on, for one call.
struct FloatState {
  uint64_t found = set_float_state();
  ~FloatState() { restore_float_state(found); }
};

// Scratch memory of one call, at a multiple of 64.
struct Scratch {
  char *block, *at;
  explicit Scratch(int64_t bytes) : block((char*)malloc(bytes + 64)) { at = (char*)rounded_up((int64_t)block, 64); }
  ~Scratch() { free(block); }
  template <class T>
  T* take(int64_t n) {
    T* p = (T*)at;
    at += rounded_up(n * (int64_t)sizeof(T), 64);
    return p;
  }
};
#define SPACE(T, n) (rounded_up((n) * (int64_t)sizeof(T), 64) + 64)

struct Kernel {
  const OrtApi* api;
  const Kernels* kernels;
  int threads;
};

// One call of an operator. TASK: LinearTask or AttentionTask.
template <class TASK>
struct Call {
  const Kernels* kernels;
  TASK task;
  // Run one kernel on all items of its work, shared among the threads in ranges of `grain`.
  template <void (*Kernels::*KERNEL)(TASK&, int64_t, int64_t)>
  void run(int64_t items, int64_t grain, int threads) {
    auto on_range = [](void* call, int64_t first, int64_t last) {
      (((Call*)call)->kernels->*KERNEL)(((Call*)call)->task, first, last);
    };
    run_parallel(on_range, this, items, grain, threads);
  }
};

static inline Norm norm_of(const OrtApi* api, const OrtKernelInfo* info) {
  Norm norm = {};
  norm.kind = (int)number(api, info, "norm", NO_NORM);
  norm.epsilon = real_number(api, info, "epsilon");
  return norm;
}

// Of the sessions that are opened next; null: none were chosen yet.
extern const Kernels* chosen_kernels;
extern int chosen_threads;

// Each operator has a function that makes its kernel from a node, one that runs it, one that frees it.
Status create_linear(const OrtApi* api, const OrtKernelInfo* info, Kernel** out);
Status run_linear(Kernel* kernel, OrtKernelContext* context);
void destroy_linear(Kernel* kernel);
Status create_normalize(const OrtApi* api, const OrtKernelInfo* info, Kernel** out);
Status run_normalize(Kernel* kernel, OrtKernelContext* context);
Status create_embed(const OrtApi* api, const OrtKernelInfo* info, Kernel** out);
Status run_embed(Kernel* kernel, OrtKernelContext* context);
Status create_attention(const OrtApi* api, const OrtKernelInfo* info, int cache_type, Kernel** out);
Status run_attention(Kernel* kernel, OrtKernelContext* context);

struct Grid;
// The numbers of [n_out][blocks] in `values`, each times its step in `steps` if there are any.
bool read_grid(const Tensor& values, const Tensor& steps, int64_t n_out, int64_t blocks, Grid* out);
