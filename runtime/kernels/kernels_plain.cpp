// The kernels with plain. Internal linkage: the linker must not merge them with another set's.
// Its lanes are arrays, so there is nothing to keep in registers.
#define UNROLLED(i, n) for (int i = 0; i < n; i++)
#include "kernels.h"

#define GPTX_NAME "plain"
namespace {
#include "lanes_plain.h"
#include "doubles_plain.h"
#include "table.h"
}  // namespace
extern const Kernels* const gptx_kernels_plain;
const Kernels* const gptx_kernels_plain = &table;
