// Included once by each instruction set's file, inside its namespace, behind its lanes.
#include "functions.h"

#include "linear.h"

#include "cache.h"

#include "attention.h"

static const Kernels table = {GPTX_NAME, prepare, multiply, normalize, place, attend, join};
