// The kernels with neon. Internal linkage: the linker must not merge them with another set's.
#include <arm_neon.h>

#include "kernels.h"

#define GPTX_NAME "neon"
namespace {
#include "lanes_neon.h"
#include "doubles_neon.h"
#include "table.h"
}  // namespace
extern const Kernels* const gptx_kernels_neon;
const Kernels* const gptx_kernels_neon = &table;
