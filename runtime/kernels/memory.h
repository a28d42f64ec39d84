// Memory of packed weights: large pieces, in pages of 2 MB where the system has them and
// use_huge_pages is true.
#pragma once
#include "numbers.h"

extern bool use_huge_pages;

struct Piece;
// `bytes` bytes at a multiple of 64; null if there are none. `*piece` must be released.
void* take_memory(int64_t bytes, Piece** piece);
void release_memory(Piece* piece);
