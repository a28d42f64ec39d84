// The kernels with neondot. Internal linkage: the linker must not merge them with another set's.
#include <arm_neon.h>

#include "kernels.h"

#define GPTX_NAME "neondot"
namespace {
#include "lanes_neon.h"
#include "doubles_neon.h"
#include "table.h"
}  // namespace
extern const Kernels* const gptx_kernels_neondot;
const Kernels* const gptx_kernels_neondot = &table;
