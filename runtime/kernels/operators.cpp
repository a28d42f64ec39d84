// gptx's operators for ONNX Runtime: Embed, Normalize, Linear and Attention, domain "gptx".
//
// Here they are registered; each has a file op_*.cpp. docs/reference/operators.md lists the inputs.
#include "export.h"
#include "operator.h"
#include "pack.h"
#include "packed_file.h"

static const int INTERFACE = 4;  // of this library; see ort/native.py

// What the next sessions use. Python sets both while it opens one session at a time.
const Kernels* chosen_kernels;
int chosen_threads = 1;

static void destroy_plain(Kernel* kernel) { free(kernel); }

template <int CACHE_TYPE>
static Status create_with_cache(const OrtApi* api, const OrtKernelInfo* info, Kernel** out) {
  return create_attention(api, info, CACHE_TYPE, out);
}

struct Operator : OrtCustomOp {
  const char* name;
  size_t inputs, needed, outputs;
  int cache_type;  // of attention's outputs 1 and 2, keys and values
  Status (*make)(const OrtApi*, const OrtKernelInfo*, Kernel**);
  Status (*run)(Kernel*, OrtKernelContext*);
};

static const Operator& of(const OrtCustomOp* op) { return *(const Operator*)op; }

static Status create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** out) {
  Kernel* kernel = nullptr;
  if (Status s = of(op).make(api, info, &kernel)) return s;
  kernel->api = api, kernel->kernels = chosen_kernels, kernel->threads = chosen_threads;
  *out = kernel;
  return nullptr;
}

template <Status (*RUN)(Kernel*, OrtKernelContext*)>
static Status compute(void* kernel, OrtKernelContext* context) { return RUN((Kernel*)kernel, context); }
template <void (*DESTROY)(Kernel*)>
static void destroy(void* kernel) { DESTROY((Kernel*)kernel); }

template <Status (*RUN)(Kernel*, OrtKernelContext*), void (*DESTROY)(Kernel*)>
static Operator describe_operator(const char* name, size_t inputs, size_t needed, size_t outputs,
                                  Status (*make)(const OrtApi*, const OrtKernelInfo*, Kernel**),
                                  int cache_type = FLOAT) {
  Operator op = {};
  op.version = ORT_VERSION;
  op.name = name, op.inputs = inputs, op.needed = needed, op.outputs = outputs, op.make = make;
  op.cache_type = cache_type;
  op.get_name = [](const OrtCustomOp* o) { return of(o).name; };
  op.get_provider = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
  op.get_input_type = [](const OrtCustomOp*, size_t) -> int { return ANY_TYPE; };
  op.get_input_count = [](const OrtCustomOp* o) { return of(o).inputs; };
  op.get_output_type = [](const OrtCustomOp* o, size_t i) -> int {
    return i == 1 || i == 2 ? of(o).cache_type : FLOAT;
  };
  op.get_output_count = [](const OrtCustomOp* o) { return of(o).outputs; };
  op.get_input_presence = [](const OrtCustomOp* o, size_t i) -> int { return i < of(o).needed ? REQUIRED : OPTIONAL; };
  // the probabilities of attention, its last output, may be left out
  op.get_output_presence = [](const OrtCustomOp* o, size_t i) -> int {
    return i && i + 1 == of(o).outputs ? OPTIONAL : REQUIRED;
  };
  op.get_memory_type = [](const OrtCustomOp*, size_t) { return 0; };
  op.get_least_variadic_input = op.get_variadic_input_alike = [](const OrtCustomOp*) { return 0; };
  op.get_least_variadic_output = op.get_variadic_output_alike = [](const OrtCustomOp*) { return 0; };
  op.create_kernel_v2 = create;
  op.compute_v2 = compute<RUN>;
  op.destroy = destroy<DESTROY>;
  op.get_first_version = [](const OrtCustomOp*) { return 1; };
  op.get_last_version = [](const OrtCustomOp*) { return 0x7fffffff; };
  return op;
}

static Operator operators[] = {
    describe_operator<run_linear, destroy_linear>("Linear", 13, 2, 1, create_linear),
    describe_operator<run_normalize, destroy_plain>("Normalize", 3, 1, 1, create_normalize),
    describe_operator<run_embed, destroy_plain>("Embed", 13, 2, 1, create_embed),
    describe_operator<run_attention, destroy_plain>("Attention", 12, 5, 4, create_with_cache<FLOAT>),
    describe_operator<run_attention, destroy_plain>("AttentionHalf", 12, 5, 4, create_with_cache<FLOAT16>, FLOAT16),
    describe_operator<run_attention, destroy_plain>("AttentionByte", 14, 5, 6, create_with_cache<INT8>, INT8),
};

// Choose the kernels (null: the best), the threads and the pages of the sessions that are made from
// now on. Returns the name of the kernels; null if this processor does not have them.
EXPORT const char* gptx_choose(const char* name, int threads, int huge_pages) {
  const Kernels* found = name ? find_kernels(name) : best_kernels();
  if (!found) return nullptr;
  chosen_kernels = found;
  chosen_threads = threads > 0 ? threads : 1;
  use_huge_pages = huge_pages != 0;
  forget_packed();
  return chosen_kernels->name;
}

// Python compares it with its own number: a library that was built from other sources is not used.
EXPORT int gptx_interface() { return INTERFACE; }

// See use_packed_file.
EXPORT const char* gptx_packed(const char* path, int use) { return use_packed_file(path, (PackedUse)use); }

EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->get_api(ORT_VERSION);
  if (!api) return nullptr;
  static OrtCustomOpDomain* domain;  // lives as long as the process, like the library
  if (!domain) {
    stay_loaded();
    if (!chosen_kernels) chosen_kernels = best_kernels();
    if (Status s = new_domain(api, "gptx", &domain)) return s;
    for (Operator& op : operators)
      if (Status s = add_operator(api, domain, &op)) return s;
  }
  return add_domain(api, options, domain);
}
