#include "memory.h"

#include <stdlib.h>

static int lock;

static void acquire() {
  while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {}
}
static void release() { __atomic_store_n(&lock, 0, __ATOMIC_RELEASE); }

#if defined(_WIN32)
#include <windows.h>
static void* map(int64_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE); }
static void unmap(void* start, int64_t) { VirtualFree(start, 0, MEM_RELEASE); }
static void* map(const char*, int64_t) { return nullptr; }
static void prepare_for_fork() {}
#else
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
static void* map(int64_t bytes) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return start == MAP_FAILED ? nullptr : start;
}
static void unmap(void* start, int64_t bytes) { munmap(start, bytes); }
static void* map(const char* path, int64_t bytes) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return nullptr;
  void* start = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  return start == MAP_FAILED ? nullptr : start;
}
// A child of fork may have been forked while another thread held the lock.
static void prepare_for_fork() {
  static bool done;
  if (!done) pthread_atfork(nullptr, nullptr, release);
  done = true;
}
#endif

// Weights of a model are packed one after the other, so several share a piece. The last one to be
// released frees it. Sessions are opened one at a time, but may be freed at any time.
struct Piece {
  char *start, *aligned;
  int64_t bytes, used;
  int64_t owners;  // weights in it, and 1 while it is the current piece
};

bool use_huge_pages = true;

static const int64_t PAGE = 2 << 20, USUAL = 32 << 20;
static Piece* current;

static void drop(Piece* piece) {
  if (--piece->owners) return;
  unmap(piece->start, piece->bytes);
  free(piece);
}

static Piece* new_piece(int64_t bytes) {
  prepare_for_fork();
  Piece* piece = (Piece*)calloc(1, sizeof(Piece));
  if (!piece) return nullptr;
  piece->bytes = most(USUAL, rounded_up(bytes, PAGE)) + PAGE;
  piece->start = (char*)map(piece->bytes);
  if (!piece->start) {
    free(piece);
    return nullptr;
  }
  piece->aligned = (char*)rounded_up((int64_t)piece->start, PAGE);
#ifdef MADV_HUGEPAGE
  if (use_huge_pages) madvise(piece->aligned, piece->bytes - PAGE, MADV_HUGEPAGE);
#endif
  piece->owners = 1;
  return piece;
}

void* take_memory(int64_t bytes, Piece** piece) {
  acquire();
  bytes = rounded_up(bytes, 64);
  if (!current || current->used + bytes > current->bytes - PAGE) {
    if (current) drop(current);
    current = new_piece(bytes);
  }
  void* at = nullptr;
  if (current) {
    at = current->aligned + current->used;
    current->used += bytes;
    current->owners++;
    *piece = current;
  }
  __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
  return at;
}

void release_memory(Piece* piece) {
  if (!piece) return;
  acquire();
  if (piece->owners == 2 && piece == current) current = nullptr, piece->owners = 1;
  drop(piece);
  release();
}

Piece* map_file(const char* path, int64_t bytes) {
  Piece* piece = (Piece*)calloc(1, sizeof(Piece));
  if (!piece) return nullptr;
  piece->bytes = bytes, piece->owners = 1;
  piece->start = piece->aligned = (char*)map(path, bytes);
  if (piece->start) return piece;
  free(piece);
  return nullptr;
}

char* share_memory(Piece* mapped, int64_t start, Piece** piece) {
  acquire();
  mapped->owners++;
  release();
  *piece = mapped;
  return mapped->start + start;
}

#if defined(__linux__)
#include <stdio.h>
#include <unistd.h>

// Stored weights that were packed. Graphs are opened one at a time.
struct Range {
  uintptr_t start, end;
};
static const int MOST_RANGES = 256;
static const int64_t AT_ONCE = 16 << 20;  // bytes; each time costs half a millisecond
static Range ranges[MOST_RANGES];
static int n_ranges;
static int64_t waiting;

void forget_packed() { n_ranges = 0, waiting = 0; }

// Drop the whole pages of what was packed inside one line of /proc/self/maps.
static void drop_inside(const char* line) {
  unsigned long from, to, inode;
  char rights[5];
  if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &from, &to, rights, &inode) != 4 || !inode || rights[3] != 'p') return;
  for (int i = 0; i < n_ranges; i++) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (ranges[i].start + page - 1) / page * page, end = ranges[i].end / page * page;
    if (start < from) start = from;
    if (end > to) end = to;
    if (start < end) madvise((void*)start, end - start, MADV_DONTNEED);
  }
}

static void give_back_packed() {
  FILE* maps = n_ranges ? fopen("/proc/self/maps", "re") : nullptr;
  char line[512];
  bool at_start = true;
  while (maps && fgets(line, sizeof line, maps)) {
    if (at_start) drop_inside(line);
    size_t n = 0;
    while (line[n]) n++;
    at_start = n && line[n - 1] == '\n';
  }
  if (maps) fclose(maps);
  forget_packed();
}

void was_packed(const void* start, int64_t bytes) {
  if (n_ranges == MOST_RANGES || waiting > AT_ONCE) give_back_packed();
  ranges[n_ranges++] = {(uintptr_t)start, (uintptr_t)start + (uintptr_t)bytes};
  waiting += bytes;
}
#else
void was_packed(const void*, int64_t) {}
void forget_packed() {}
#endif
