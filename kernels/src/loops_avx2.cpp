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

// Entries of 2^Bits rows of sixteen: the lowest four bits of an index choose within a row, the next ones among rows.
template <int Bits>
inline Vector entries_of(const uint8_t *rows, Vector index, Vector lowest) {
  if constexpr (Bits == 0) {
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row), lowest);
  } else {
    const Vector first = entries_of<Bits - 1>(rows, index, lowest);
    const Vector second = entries_of<Bits - 1>(rows + (8 << Bits), index, lowest);
    return _mm256_blendv_epi8(first, second, _mm256_slli_epi16(index, 4 - Bits));
  }
}

// Whether tables of bytes are read by vectors.
bool has_tables_of_bytes() { return true; }

// y[i] = entries[x[i] ^ flip], as far as whole vectors go: how many that were.
int64_t table_of_bytes(int64_t count, const uint8_t *x, uint8_t flip, const uint8_t *entries, uint8_t *y) {
  const Vector flips = _mm256_set1_epi8(static_cast<char>(flip)), nibble = _mm256_set1_epi8(15);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    const Vector index = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + i)), flips);
    const Vector found = entries_of<4>(entries, index, _mm256_and_si256(index, nibble));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(y + i), found);
  }
  return i;
}

}  // namespace
}  // namespace avx2
}  // namespace kvant

#include "tile_x86.h"

#include "loops_body.h"
