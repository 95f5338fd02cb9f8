// Inner loops for x86 with AVX2.
#include <immintrin.h>

#include "loops.h"

#define KVANT_ISA avx2

namespace kvant {
namespace avx2 {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kLanes = 8;
constexpr int64_t kVectors = 2;
using Vector = __m256i;

inline Vector zero() { return _mm256_setzero_si256(); }
inline Vector load(const int16_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
inline void store(int32_t *to, Vector value) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), value); }
inline Vector broadcast(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return _mm256_set1_epi32(bits);
}
inline Vector multiply_add(Vector sum, Vector a, Vector b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

}  // namespace
}  // namespace avx2
}  // namespace kvant

#include "tile_x86.h"

#include "loops_body.h"
