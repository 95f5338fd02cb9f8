// Winograd loops for x86 with AVX2.
#include <immintrin.h>

#include "winograd.h"

#define KVANT_ISA avx2

namespace kvant {
namespace avx2 {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kRows = 6;
constexpr int64_t kVectors = 2;
typedef uint16_t Shorts __attribute__((vector_size(32)));
typedef uint32_t Ints __attribute__((vector_size(32)));
using Floats = __m256;

struct VectorBounds {
  Floats low, high;  // without the zero point
  Ints zero;
};

inline Shorts widen(const uint8_t *from) {
  return reinterpret_cast<Shorts>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}

inline Ints broadcast(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return reinterpret_cast<Ints>(_mm256_set1_epi32(bits));
}

inline Ints multiply_add(Ints sum, Ints a, Ints b) {
  return sum + reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}

inline Ints shift_right_6(Ints value) {
  return reinterpret_cast<Ints>(_mm256_srai_epi32(reinterpret_cast<__m256i>(value), 6));
}

inline VectorBounds vector_bounds(const kvant_target &target) {
  return {_mm256_set1_ps(static_cast<float>(target.low - target.zero_point)),
          _mm256_set1_ps(static_cast<float>(target.high - target.zero_point)),
          reinterpret_cast<Ints>(_mm256_set1_epi32(target.zero_point))};
}

inline __m256i rounded(Floats value, const VectorBounds &bounds) {
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, bounds.low), bounds.high));
}

inline Floats product(Ints sum, Floats multipliers) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(sum)), multipliers);
}

inline Ints settle(Ints sum, Floats multipliers, const VectorBounds &bounds) {
  return reinterpret_cast<Ints>(rounded(product(sum, multipliers), bounds)) + bounds.zero;
}

struct VectorAddition {
  Floats multiplier, added_multiplier;
  Ints added_zero;
  VectorBounds result;
};

inline VectorAddition vector_addition(const kvant_addend &addend) {
  return {_mm256_set1_ps(addend.multiplier), _mm256_set1_ps(addend.added_multiplier),
          reinterpret_cast<Ints>(_mm256_set1_epi32(addend.zero_point)), vector_bounds(addend.target)};
}

inline Ints settle_sum(Ints sum, Floats multipliers, const VectorBounds &bounds, Ints added, const VectorAddition &a) {
  const Ints own = reinterpret_cast<Ints>(rounded(product(sum, multipliers), bounds));
  const Floats value = _mm256_add_ps(product(own, a.multiplier), product(added - a.added_zero, a.added_multiplier));
  return reinterpret_cast<Ints>(rounded(value, a.result)) + a.result.zero;
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

}  // namespace
}  // namespace avx2
}  // namespace kvant

#include "winograd_body.h"
