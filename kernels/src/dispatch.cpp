// Which instruction set's loops run on this machine.
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

#if defined(KVANT_HAVE_X86)
bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

Isa choose() {
  const char *asked = std::getenv("KVANT_ISA");
  const char *name = asked == nullptr ? "" : asked;
  __builtin_cpu_init();
  if (std::strcmp(name, "portable") == 0 || !__builtin_cpu_supports("avx2")) return Isa::kPortable;
  if (std::strcmp(name, "avx2") == 0 || !has_avx512vnni()) return Isa::kAvx2;
  return Isa::kAvx512Vnni;
}
#else
Isa choose() { return Isa::kPortable; }
#endif

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const Loops &loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return avx512vnni::kLoops;
  if (isa() == Isa::kAvx2) return avx2::kLoops;
#endif
  return portable::kLoops;
}

}  // namespace kvant

extern "C" const char *kvant_isa(void) { return kvant::loops().name; }
extern "C" int32_t kvant_abi_version(void) { return KVANT_ABI_VERSION; }
