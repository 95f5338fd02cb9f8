// Vectors of 256 bits for Winograd: what AVX2 and AVX-VNNI have in common. Included by the source file of an
// instruction set, which defines KVANT_ISA.
#pragma once

#include <immintrin.h>

#include "dot_vectors_avx2.h"
#include "winograd.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kRows = 6;
constexpr int64_t kVectors = 2;
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef uint32_t Ints __attribute__((vector_size(32)));
using Floats = __m256;

inline Shorts widen(const uint8_t *from) {
  return reinterpret_cast<Shorts>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}

inline Shorts widen(const int8_t *from) {
  return reinterpret_cast<Shorts>(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}

inline Ints broadcast(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return reinterpret_cast<Ints>(_mm256_set1_epi32(bits));
}

inline Ints multiply_add(Ints sum, Ints a, Ints b) {
  return reinterpret_cast<Ints>(
      dot_shorts(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

inline Ints shift_right_6(Ints value) {
  return reinterpret_cast<Ints>(_mm256_srai_epi32(reinterpret_cast<__m256i>(value), 6));
}

inline Floats floats_of(float value) { return _mm256_set1_ps(value); }
inline Ints ints_of(int32_t value) { return reinterpret_cast<Ints>(_mm256_set1_epi32(value)); }

inline Floats product(Ints integers, Floats factors) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(integers)), factors);
}

inline Ints rounded(Floats value, Floats low, Floats high) {
  return reinterpret_cast<Ints>(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, low), high)));
}

inline Ints load_bytes(const uint8_t *from) {
  return reinterpret_cast<Ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from))));
}

inline Ints load_words(const int16_t *from) {
  return reinterpret_cast<Ints>(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}

inline __m128i low_half(Ints values) { return _mm256_castsi256_si128(reinterpret_cast<__m256i>(values)); }
inline __m128i high_half(Ints values) { return _mm256_extracti128_si256(reinterpret_cast<__m256i>(values), 1); }

inline void store_bytes(uint8_t *to, Ints values) {
  const __m128i words = _mm_packs_epi32(low_half(values), high_half(values));
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm_packus_epi16(words, words));
}

inline void store_words(int16_t *to, Ints values) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_packs_epi32(low_half(values), high_half(values)));
}

struct ByteBounds {
  __m256i zero, low, high;
};

inline ByteBounds byte_bounds(const kvant_target &target) {
  return {_mm256_set1_epi16(static_cast<int16_t>(target.zero_point)), _mm256_set1_epi8(static_cast<char>(target.low)),
          _mm256_set1_epi8(static_cast<char>(target.high))};
}

inline __m256i pack(Floats first, Floats second, const ByteBounds &bounds) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(first), _mm256_cvtps_epi32(second));
  return _mm256_adds_epi16(words, bounds.zero);
}

// Packed, each 128 bits hold four outputs of all pixels.
inline void store_pixels(uint8_t *to, int64_t right, const Floats (&values)[4], const ByteBounds &bounds) {
  __m256i bytes = _mm256_packus_epi16(pack(values[0], values[1], bounds), pack(values[2], values[3], bounds));
  bytes = _mm256_min_epu8(_mm256_max_epu8(bytes, bounds.low), bounds.high);
  bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to), first);
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to + right), _mm_unpackhi_epi64(first, first));
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to + 2 * right), second);
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to + 3 * right), _mm_unpackhi_epi64(second, second));
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
