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

__attribute__((target("avx512vbmi"))) int64_t table_by_vbmi(int64_t count, const uint8_t *x, uint8_t flip,
                                                            const uint8_t *entries, uint8_t *y) {
  const Vector flips = _mm512_set1_epi8(static_cast<char>(flip));
  const Vector first = _mm512_loadu_si512(entries), second = _mm512_loadu_si512(entries + 64),
               third = _mm512_loadu_si512(entries + 128), fourth = _mm512_loadu_si512(entries + 192);
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    const Vector index = _mm512_xor_si512(_mm512_loadu_si512(x + i), flips);
    const Vector lower = _mm512_permutex2var_epi8(first, index, second);
    const Vector upper = _mm512_permutex2var_epi8(third, index, fourth);
    _mm512_storeu_si512(y + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), lower, upper));
  }
  return i;
}

// Whether tables of bytes are read by vectors. The first processors with VNNI lack VBMI.
bool has_tables_of_bytes() { return __builtin_cpu_supports("avx512vbmi"); }

// y[i] = entries[x[i] ^ flip], as far as whole vectors go: how many that were.
int64_t table_of_bytes(int64_t count, const uint8_t *x, uint8_t flip, const uint8_t *entries, uint8_t *y) {
  return has_tables_of_bytes() ? table_by_vbmi(count, x, flip, entries, y) : 0;
}

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "tile_x86.h"

#include "loops_body.h"
