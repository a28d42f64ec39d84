// The kernels with avx2. Internal linkage: the linker must not merge them with another set's.
#include <immintrin.h>

#include "kernels.h"

#define GPTX_NAME "avx2"
namespace {
#include "lanes_avx2.h"
#include "doubles_avx2.h"
#include "table.h"
}  // namespace
extern const Kernels* const gptx_kernels_avx2;
const Kernels* const gptx_kernels_avx2 = &table;
