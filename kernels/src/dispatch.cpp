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

const Loops &choose() {
  const char *asked = std::getenv("KVANT_ISA");
  const char *isa = asked == nullptr ? "" : asked;
  __builtin_cpu_init();
  if (std::strcmp(isa, "portable") == 0 || !__builtin_cpu_supports("avx2")) return portable::kLoops;
  if (std::strcmp(isa, "avx2") == 0 || !has_avx512vnni()) return avx2::kLoops;
  return avx512vnni::kLoops;
}
#else
const Loops &choose() { return portable::kLoops; }
#endif

}  // namespace

const Loops &loops() {
  static const Loops &chosen = choose();
  return chosen;
}

}  // namespace kvant

extern "C" const char *kvant_isa(void) { return kvant::loops().name; }
extern "C" int32_t kvant_abi_version(void) { return KVANT_ABI_VERSION; }
