// Memory of packed weights: large pieces, in pages of 2 MB where the system has them and
// use_huge_pages is true.
#pragma once
#include "numbers.h"

extern bool use_huge_pages;

struct Piece;
// `bytes` bytes at a multiple of 64; null if there are none. `*piece` must be released.
void* take_memory(int64_t bytes, Piece** piece);
void release_memory(Piece* piece);

// A file of `bytes` bytes in memory, shared with all processes that map it; null if that fails. The
// caller must release it.
Piece* map_file(const char* path, int64_t bytes);
// The memory of a mapped file from its byte `start` on. `*piece` must be released too.
char* share_memory(Piece* mapped, int64_t start, Piece** piece);

// The stored weights at `start` were packed. Now and then the pages of such weights are given back,
// so that stored and packed weights are not in memory together (Linux). Only pages of mapped files
// are: they are read from the file again when somebody needs them.
void was_packed(const void* start, int64_t bytes);
// Before a graph is opened: forget what was packed for others, whose memory may be gone.
void forget_packed();
