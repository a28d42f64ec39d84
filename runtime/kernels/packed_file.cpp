#include "packed_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

static const char MAGIC[8] = {'g', 'p', 't', 'x', 'p', 'a', 'c', 'k'};
static const int64_t LONGEST_NAME = 64, MOST_WEIGHTS = 1 << 16;

struct Beginning {
  char magic[8];
  uint32_t packing, count;
  int64_t list;  // where the list starts
  int64_t unused[5];
};

struct Entry {
  char name[LONGEST_NAME];
  int64_t facts[14];
  int64_t start, bytes;
};

static FILE* file;
static PackedUse use;
static Beginning beginning;
static Entry* entries;
static int64_t size, n_entries, room;
static Piece* mapped;
static const char* wrong;  // while the file is written

static void describe(const Matrix& m, const Weight& w, int64_t (&facts)[14]) {
  const Scales &s = w.scales, &o = w.offsets;
  int64_t all[14] = {w.form, w.n_out, w.n_in, w.n_groups, w.block, w.n_blocks, s.n_steps, s.blocks_per_step,
                     m.scales.factors != nullptr, m.scales.halves != nullptr, o.n_steps,
                     m.offsets.factors != nullptr, m.offsets.halves != nullptr, m.zeros != nullptr};
  memcpy(facts, all, sizeof all);
}

static void forget() {
  if (file) fclose(file);
  if (mapped) release_memory(mapped);
  free(entries);
  file = nullptr, mapped = nullptr, entries = nullptr, n_entries = room = 0, wrong = nullptr;
}

static const char* finish_writing() {
  beginning.count = (uint32_t)n_entries, beginning.list = size;
  bool whole = fwrite(entries, sizeof(Entry), n_entries, file) == (size_t)n_entries && !fseek(file, 0, SEEK_SET) &&
               fwrite(&beginning, sizeof beginning, 1, file) == 1;
  const char* problem = wrong;
  if (fclose(file) || !whole) problem = "it could not be written";
  file = nullptr;
  forget();
  return problem;
}

static const char* start_writing() {
  memset(&beginning, 0, sizeof beginning);
  memcpy(beginning.magic, MAGIC, sizeof MAGIC);
  beginning.packing = PACKING;
  size = sizeof beginning;
  return fwrite(&beginning, sizeof beginning, 1, file) == 1 ? nullptr : "it could not be written";
}

// A file may be damaged, so nothing in it is trusted but the weights themselves.
static const char* start_reading(const char* path) {
  static const char* damaged = "it is damaged";
  if (fread(&beginning, sizeof beginning, 1, file) != 1 || memcmp(beginning.magic, MAGIC, sizeof MAGIC)) return damaged;
  if (beginning.packing != PACKING) return "its weights are packed in another way";
  if (fseek(file, 0, SEEK_END)) return damaged;
  size = ftell(file), n_entries = beginning.count;
  if (n_entries > MOST_WEIGHTS || beginning.list < 0 || beginning.list > size - n_entries * (int64_t)sizeof(Entry))
    return damaged;
  entries = (Entry*)malloc(n_entries * sizeof(Entry) + 1);
  if (!entries) return "no memory for its list of weights";
  if (fseek(file, beginning.list, SEEK_SET) || fread(entries, sizeof(Entry), n_entries, file) != (size_t)n_entries)
    return damaged;
  int64_t end = sizeof beginning;  // weights lie one behind the other, the list behind the last
  for (int64_t i = 0; i < n_entries; end += entries[i++].bytes)
    if (entries[i].start != end || entries[i].bytes < 0 || entries[i].bytes > beginning.list - end) return damaged;
  if (end != beginning.list) return damaged;
  if (use == PACKED_MAP && !(mapped = map_file(path, size))) return "it could not be mapped";
  return nullptr;
}

const char* use_packed_file(const char* path, PackedUse asked) {
  if (!path) {
    if (file && use == PACKED_WRITE) return finish_writing();
    forget();
    return nullptr;
  }
  forget();
  use = asked;
  file = fopen(path, use == PACKED_WRITE ? "wb" : "rb");
  if (!file) return "it could not be opened";
  const char* problem = use == PACKED_WRITE ? start_writing() : start_reading(path);
  if (problem) forget();
  return problem;
}

bool reads_packed_file() { return file && use != PACKED_WRITE; }

void write_packed(const char* name, const Matrix& m, const Weight& w, const char* memory, int64_t bytes) {
  if (!file || use != PACKED_WRITE || wrong) return;
  if (n_entries == room) {
    room = room ? 2 * room : 64;
    Entry* longer = (Entry*)realloc(entries, room * sizeof(Entry));
    if (!longer) {
      wrong = "no memory for its list of weights";
      return;
    }
    entries = longer;
  }
  Entry& e = entries[n_entries++];
  memset(&e, 0, sizeof e);
  strncpy(e.name, name, LONGEST_NAME - 1);
  describe(m, w, e.facts);
  e.start = size, e.bytes = bytes;
  if (fwrite(memory, 1, bytes, file) != (size_t)bytes) wrong = "it could not be written";
  size += bytes;
}

struct Copy {
  int64_t start, bytes;
  char* to;
  bool failed;
};
static const int64_t AT_ONCE = 1 << 20;

#if defined(_WIN32)
static bool read_at(char* to, int64_t bytes, int64_t start) {
  return !_fseeki64(file, start, SEEK_SET) && fread(to, 1, bytes, file) == (size_t)bytes;
}
static const int MOST_READERS = 1;  // they share the file's position
#else
#include <unistd.h>
static bool read_at(char* to, int64_t bytes, int64_t start) {
  while (bytes) {
    ssize_t n = pread(fileno(file), to, bytes, start);
    if (n <= 0) return false;
    to += n, bytes -= n, start += n;
  }
  return true;
}
static const int MOST_READERS = 1024;
#endif

static void copy_parts(void* task, int64_t first, int64_t last) {
  Copy& copy = *(Copy*)task;
  int64_t from = first * AT_ONCE, to = least(last * AT_ONCE, copy.bytes);
  if (!read_at(copy.to + from, to - from, copy.start + from)) copy.failed = true;
}

char* read_packed(const char* name, const Matrix& m, const Weight& w, int64_t bytes, int threads, Piece** piece) {
  int64_t facts[14];
  describe(m, w, facts);
  for (int64_t i = 0; i < n_entries; i++) {
    const Entry& e = entries[i];
    if (strncmp(e.name, name, LONGEST_NAME - 1) || e.bytes != bytes || memcmp(e.facts, facts, sizeof facts)) continue;
    if (mapped) return share_memory(mapped, e.start, piece);
    Copy copy = {e.start, bytes, (char*)take_memory(bytes, piece), false};
    if (!copy.to) return nullptr;
    run_parallel(copy_parts, &copy, (bytes + AT_ONCE - 1) / AT_ONCE, 1, (int)least(threads, MOST_READERS));
    if (!copy.failed) return copy.to;
    release_memory(*piece);
    return nullptr;
  }
  return nullptr;
}
