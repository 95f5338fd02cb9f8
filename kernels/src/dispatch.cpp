// Which instruction set's loops run on this machine.
#if defined(KVANT_HAVE_X86)
#include <cpuid.h>
#elif defined(KVANT_HAVE_NEON)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <cstring>

#include "loops.h"

namespace kvant {

namespace portable {
extern const Loops kLoops;
}
#if defined(KVANT_HAVE_X86)
namespace avx2 {
extern const Loops kLoops;
}
namespace avx512vnni {
extern const Loops kLoops;
}
#endif

namespace {

// Names as in KVANT_ISA, in the order of Isa.
constexpr const char *kNames[] = {"portable", "neondot", "avx2", "avxvnni", "avx512vnni"};

#if defined(KVANT_HAVE_X86)
bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

bool has_avxvnni() {
#if !defined(KVANT_HAVE_AVXVNNI)
  return false;
#elif defined(KVANT_AVXVNNI_AS_AVX512)
  return has_avx512vnni();
#else
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0;
#endif
}

bool has(Isa isa) {
  __builtin_cpu_init();
  if (isa == Isa::kAvx512Vnni) return __builtin_cpu_supports("avx2") && has_avx512vnni();
  if (isa == Isa::kAvxVnni) return __builtin_cpu_supports("avx2") && has_avxvnni();
  return isa == Isa::kPortable || (isa == Isa::kAvx2 && __builtin_cpu_supports("avx2"));
}
#elif defined(KVANT_HAVE_NEON)
bool has(Isa isa) {
  return isa == Isa::kPortable || (isa == Isa::kNeonDot && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0);
}
#else
bool has(Isa isa) { return isa == Isa::kPortable; }
#endif

// The best one that the processor has, but no better than what KVANT_ISA asks for.
Isa choose() {
  const char *asked = std::getenv("KVANT_ISA");
  int best = static_cast<int>(Isa::kAvx512Vnni);
  for (int i = 0; i <= static_cast<int>(Isa::kAvx512Vnni); ++i) {
    if (asked != nullptr && std::strcmp(asked, kNames[i]) == 0) best = i;
  }
  while (best > 0 && !has(static_cast<Isa>(best))) --best;
  return static_cast<Isa>(best);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const Loops &loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return avx512vnni::kLoops;
  if (isa() >= Isa::kAvx2) return avx2::kLoops;
#endif
  return portable::kLoops;
}

}  // namespace kvant

extern "C" const char *kvant_isa(void) { return kvant::kNames[static_cast<int>(kvant::isa())]; }
extern "C" int32_t kvant_abi_version(void) { return KVANT_ABI_VERSION; }
