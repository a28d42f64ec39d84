// Included once by each instruction set's file, inside its namespace, behind its lanes.
#include "functions.h"

#include "linear.h"

#include "cache.h"

#include "attention.h"

#include "functions_double.h"

#include "softmax.h"

static const Kernels table = {GPTX_NAME,    prepare,           multiply,           normalize,    place,       attend, join,
                              exp_weights, logsumexp<float>, logsumexp<double>, on_each<exp>, on_each<log>};
