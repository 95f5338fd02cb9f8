// Vectors of 256 bits for the number-theoretic transform: what AVX2 and AVX-VNNI have in common. Included by the source
// file of an instruction set, which defines KVANT_ISA.
#pragma once

#include <immintrin.h>

#include "dot_vectors_avx2.h"
#include "transform.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 16;
constexpr int kMostRows = 6;
using Vector = __m256i;
using Floats = __m256;

inline Vector zero() { return _mm256_setzero_si256(); }
inline Vector load(const int16_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
inline Vector load32(const int32_t *from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }
inline Floats load_floats(const float *from) { return _mm256_loadu_ps(from); }
inline void store(int16_t *to, Vector value) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), value); }
inline Vector widen(const uint8_t *from) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
inline Vector widen(const int8_t *from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

inline Vector set16(int16_t value) { return _mm256_set1_epi16(value); }
inline Vector set32(int32_t value) { return _mm256_set1_epi32(value); }
inline Floats set_float(float value) { return _mm256_set1_ps(value); }
inline Vector set_pairs(int16_t even, int16_t odd) {
  const uint32_t lower = static_cast<uint16_t>(even), upper = static_cast<uint16_t>(odd);
  return _mm256_set1_epi32(static_cast<int32_t>(lower | upper << 16));
}
inline Vector set_pair(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return _mm256_set1_epi32(bits);
}

inline Vector add16(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
inline Vector sub16(Vector a, Vector b) { return _mm256_sub_epi16(a, b); }
inline Vector add32(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
inline Vector high16(Vector a, Vector b) { return _mm256_mulhi_epi16(a, b); }
inline Vector low16(Vector a, Vector b) { return _mm256_mullo_epi16(a, b); }
// a * b / 2^15, rounded.
inline Vector scaled16(Vector a, Vector b) { return _mm256_mulhrs_epi16(a, b); }

// Lower or upper 16 bits of every 32: of `even` in the even lanes, of `odd` in the odd ones.
inline Vector join_low(Vector even, Vector odd) { return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa); }
inline Vector join_high(Vector even, Vector odd) { return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa); }

inline Vector multiply_pairs(Vector a, Vector b) { return _mm256_madd_epi16(a, b); }
inline Vector multiply_add(Vector sum, Vector a, Vector b) { return dot_shorts(sum, a, b); }

// sum - step where it is above the bound, sum + step where it is below.
inline Vector lower_above(Vector sum, Vector bound, Vector step) {
  return _mm256_sub_epi32(sum, _mm256_and_si256(_mm256_cmpgt_epi32(sum, bound), step));
}
inline Vector raise_below(Vector sum, Vector bound, Vector step) {
  return _mm256_add_epi32(sum, _mm256_and_si256(_mm256_cmpgt_epi32(bound, sum), step));
}

inline Floats scale(Vector sum, Floats multipliers) { return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), multipliers); }
inline Floats clamp(Floats value, Floats low, Floats high) { return _mm256_min_ps(_mm256_max_ps(value, low), high); }
inline Vector round(Floats value) { return _mm256_cvtps_epi32(value); }

// The first `count` lanes, which fit the element type.
inline void store_results(uint8_t *to, Vector value, int64_t count) {
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
  if (count >= kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to), bytes);
  } else {
    __builtin_memcpy(to, &bytes, static_cast<uint64_t>(count));
  }
}
inline void store_results(int16_t *to, Vector value, int64_t count) {
  if (count >= kLanes) {
    store(to, value);
  } else {
    __builtin_memcpy(to, &value, static_cast<uint64_t>(count) * sizeof(int16_t));
  }
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
