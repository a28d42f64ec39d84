// Packed weights in a file, so that opening a graph need not pack them again (gptx compile).
//
// The file does not depend on the processor: all kernels read weights in one layout. Its beginning
// says how many weights there are and where their list starts. The list says of each weight the
// name of its node, its shape and form, and where its memory lies.
#pragma once
#include "pack.h"

static const uint32_t PACKING = 1;  // number of the layout; another layout takes the next number

enum PackedUse { PACKED_COPY, PACKED_MAP, PACKED_WRITE };

// Weights that are packed from now on come from the file, or are also written to it. Null: the file
// is complete, or no longer used. Returns what is wrong, or null. Graphs are opened one at a time.
const char* use_packed_file(const char* path, PackedUse);

bool reads_packed_file();

// The memory of a weight, whose sizes stand in `w`, from the file: copied on up to `threads`
// threads, or mapped. Null if the file lacks it, or there is no memory.
char* read_packed(const char* name, const Matrix&, const Weight& w, int64_t bytes, int threads, Piece**);

// Writes a weight to the file, if there is one to write.
void write_packed(const char* name, const Matrix&, const Weight& w, const char* memory, int64_t bytes);
