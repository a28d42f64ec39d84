// The part of ONNX Runtime's C interface that custom operators use. Packages hold no header of it.
// Entries of OrtApi are found by their place in onnxruntime_c_api.h, which only ever grows at its
// end.
#pragma once
#include "numbers.h"

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtApi;  // a table of function pointers

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

static const uint32_t ORT_VERSION = 18;  // of OrtApi and OrtCustomOp; ONNX Runtime 1.31 has more
enum OrtType { ANY_TYPE = 0, FLOAT = 1, UINT8 = 2, INT8 = 3, INT32 = 6, INT64 = 7, FLOAT16 = 10 };
enum OrtPresence { REQUIRED = 0, OPTIONAL = 1 };
enum OrtError { FAILED = 1, INVALID_ARGUMENT = 2 };

struct OrtCustomOp {
  uint32_t version;
  void* (*create_kernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*get_name)(const OrtCustomOp*);
  const char* (*get_provider)(const OrtCustomOp*);
  int (*get_input_type)(const OrtCustomOp*, size_t);
  size_t (*get_input_count)(const OrtCustomOp*);
  int (*get_output_type)(const OrtCustomOp*, size_t);
  size_t (*get_output_count)(const OrtCustomOp*);
  void (*compute)(void*, OrtKernelContext*);
  void (*destroy)(void*);
  int (*get_input_presence)(const OrtCustomOp*, size_t);
  int (*get_output_presence)(const OrtCustomOp*, size_t);
  int (*get_memory_type)(const OrtCustomOp*, size_t);
  int (*get_least_variadic_input)(const OrtCustomOp*);
  int (*get_variadic_input_alike)(const OrtCustomOp*);
  int (*get_least_variadic_output)(const OrtCustomOp*);
  int (*get_variadic_output_alike)(const OrtCustomOp*);
  OrtStatus* (*create_kernel_v2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*compute_v2)(void*, OrtKernelContext*);
  OrtStatus* (*infer_shapes)(const OrtCustomOp*, void*);
  int (*get_first_version)(const OrtCustomOp*);
  int (*get_last_version)(const OrtCustomOp*);
  size_t (*get_may_be_in_place)(int**, int**);
  void (*release_may_be_in_place)(int*, int*);
  size_t (*get_aliases)(int**, int**);
  void (*release_aliases)(int*, int*);
};

template <int PLACE, class Result, class... Arguments>
static inline Result call(const OrtApi* api, Arguments... arguments) {
  void* const* entries = (void* const*)api;
  return ((Result(*)(Arguments...))entries[PLACE])(arguments...);
}

typedef OrtStatus* Status;  // null: no error

static inline Status error(const OrtApi* api, const char* words) {
  return call<0, Status>(api, (int)INVALID_ARGUMENT, words);
}
static inline void release(const OrtApi* api, Status status) { call<93, void>(api, status); }
static inline Status new_domain(const OrtApi* api, const char* name, OrtCustomOpDomain** out) {
  return call<26, Status>(api, name, out);
}
static inline Status add_operator(const OrtApi* api, OrtCustomOpDomain* domain, OrtCustomOp* op) {
  return call<27, Status>(api, domain, op);
}
static inline Status add_domain(const OrtApi* api, OrtSessionOptions* options, OrtCustomOpDomain* domain) {
  return call<28, Status>(api, options, domain);
}
static inline Status attribute(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t* out) {
  return call<86, Status>(api, info, name, out);
}
static inline Status attribute(const OrtApi* api, const OrtKernelInfo* info, const char* name, float* out) {
  return call<85, Status>(api, info, name, out);
}
static inline Status node_name(const OrtApi* api, const OrtKernelInfo* info, char* out, size_t* length) {
  return call<244, Status>(api, info, out, length);
}
static inline Status get_input(const OrtApi* api, const OrtKernelContext* context, size_t i, const OrtValue** out) {
  return call<90, Status>(api, context, i, out);
}
static inline Status get_output(const OrtApi* api, OrtKernelContext* context, size_t i, const int64_t* shape,
                                size_t rank, OrtValue** out) {
  return call<91, Status>(api, context, i, shape, rank, out);
}
static inline Status constant_input(const OrtApi* api, const OrtKernelInfo* info, size_t i, int* is_constant,
                                    const OrtValue** out) {
  return call<249, Status>(api, info, i, is_constant, out);
}
static inline Status data_of(const OrtApi* api, const OrtValue* value, void** out) {
  return call<51, Status>(api, (OrtValue*)value, out);
}
static inline Status type_and_shape(const OrtApi* api, const OrtValue* value, OrtTensorTypeAndShapeInfo** out) {
  return call<65, Status>(api, value, out);
}
static inline Status type_of(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info, int* out) {
  return call<60, Status>(api, info, out);
}
static inline Status rank_of(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info, size_t* out) {
  return call<61, Status>(api, info, out);
}
static inline Status shape_of(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t rank) {
  return call<62, Status>(api, info, out, rank);
}
static inline void release(const OrtApi* api, OrtTensorTypeAndShapeInfo* info) { call<99, void>(api, info); }
