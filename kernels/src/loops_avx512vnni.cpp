// Inner loops for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
#include <immintrin.h>

#include "loops.h"

#define KVANT_ISA avx512vnni

namespace kvant {
namespace avx512vnni {
namespace {

constexpr int64_t kRows = 8;
constexpr int64_t kLanes = 16;
constexpr int64_t kVectors = 3;
using Vector = __m512i;

inline Vector zero() { return _mm512_setzero_si512(); }
inline Vector load(const int16_t *from) { return _mm512_loadu_si512(from); }
inline void store(int32_t *to, Vector value) { _mm512_storeu_si512(to, value); }
inline Vector broadcast(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return _mm512_set1_epi32(bits);
}
// The compiler spills accumulators around the intrinsic (GCC 12); it does not around one instruction of its own.
inline Vector multiply_add(Vector sum, Vector a, Vector b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "tile_x86.h"

#include "loops_body.h"
