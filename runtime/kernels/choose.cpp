// Which kernels this processor can run, the fastest first.
#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
extern const Kernels *const gptx_kernels_avx512vnni, *const gptx_kernels_avx512, *const gptx_kernels_avx2;
#ifdef GPTX_WITHOUT_AVXVNNI  // build.py: the compiler is too old
#define AVXVNNI
#else
extern const Kernels* const gptx_kernels_avxvnni;
#define AVXVNNI gptx_kernels_avxvnni,
#endif

static uint32_t saved_registers() {  // XCR0: the registers that the operating system saves
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static bool can(const char* set) {
  uint32_t a, b, c, d, b7, c7, d7;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  bool os = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  if (!os || !fma || !f16c || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return false;
  uint32_t saved = saved_registers();
  if ((saved & 6) != 6 || !(b7 >> 5 & 1)) return false;  // AVX2
  if (set[3] == '2') return true;
  if (set[3] == 'v') return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
  // AVX-512 F, DQ, BW, VL
  bool wide = (saved & 0xe6) == 0xe6 && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1);
  return wide && (set[6] != 'v' || (c7 >> 11 & 1));
}
#define CHOICES {gptx_kernels_avx512vnni, AVXVNNI gptx_kernels_avx512, gptx_kernels_avx2, gptx_kernels_plain}
#elif defined(__aarch64__)
extern const Kernels *const gptx_kernels_neondot, *const gptx_kernels_neon;
#if defined(__linux__)
#include <sys/auxv.h>
static bool can(const char* set) { return set[4] != 'd' || (getauxval(AT_HWCAP) >> 20 & 1); }  // asimddp
#elif defined(__APPLE__)
static bool can(const char*) { return true; }  // every Apple processor has dot products
#else
static bool can(const char* set) { return set[4] != 'd'; }
#endif
#define CHOICES {gptx_kernels_neondot, gptx_kernels_neon, gptx_kernels_plain}
#else
static bool can(const char*) { return false; }
#define CHOICES {gptx_kernels_plain}
#endif

extern const Kernels* const gptx_kernels_plain;

static bool same(const char* a, const char* b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}

static const Kernels* find(const char* name) {
  const Kernels* const choices[] = CHOICES;
  for (const Kernels* one : choices) {
    if (name && !same(one->name, name)) continue;
    if (one == gptx_kernels_plain || can(one->name)) return one;
  }
  return nullptr;
}

const Kernels* find_kernels(const char* name) { return find(name); }
const Kernels* best_kernels() { return find(nullptr); }
