// The kernels with avx512vnni. Internal linkage: the linker must not merge them with another set's.
#include <immintrin.h>

#include "kernels.h"

#define GPTX_VNNI
#define GPTX_NAME "avx512vnni"
namespace {
#include "lanes_avx512.h"
#include "doubles_avx512.h"
#include "table.h"
}  // namespace
extern const Kernels* const gptx_kernels_avx512vnni;
const Kernels* const gptx_kernels_avx512vnni = &table;
