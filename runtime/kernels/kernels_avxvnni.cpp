// The kernels with avxvnni. Internal linkage: the linker must not merge them with another set's.
#include <immintrin.h>

#include "kernels.h"

#define GPTX_VNNI
#define GPTX_NAME "avxvnni"
namespace {
#include "lanes_avx2.h"
#include "doubles_avx2.h"
#include "table.h"
}  // namespace
extern const Kernels* const gptx_kernels_avxvnni;
const Kernels* const gptx_kernels_avxvnni = &table;
