// Winograd loops for x86 with AVX-512 (F, BW, DQ, VL) and VNNI.
#include <immintrin.h>

#include "winograd.h"

#define KVANT_ISA avx512vnni

namespace kvant {
namespace avx512vnni {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kRows = 6;
constexpr int64_t kVectors = 4;
typedef uint16_t Shorts __attribute__((vector_size(64)));
typedef uint32_t Ints __attribute__((vector_size(64)));
using Floats = __m512;

struct VectorBounds {
  Floats low, high;  // without the zero point
  Ints zero;
};

inline Shorts widen(const uint8_t *from) {
  return reinterpret_cast<Shorts>(_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
}

inline Ints broadcast(const int16_t *pair) {
  int32_t bits;
  __builtin_memcpy(&bits, pair, sizeof bits);
  return reinterpret_cast<Ints>(_mm512_set1_epi32(bits));
}

// The compiler spills accumulators around the intrinsic (GCC 12); it does not around one instruction of its own.
inline Ints multiply_add(Ints sum, Ints a, Ints b) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

inline Ints shift_right_6(Ints value) {
  return reinterpret_cast<Ints>(_mm512_srai_epi32(reinterpret_cast<__m512i>(value), 6));
}

inline VectorBounds vector_bounds(const kvant_target &target) {
  return {_mm512_set1_ps(static_cast<float>(target.low - target.zero_point)),
          _mm512_set1_ps(static_cast<float>(target.high - target.zero_point)),
          reinterpret_cast<Ints>(_mm512_set1_epi32(target.zero_point))};
}

inline __m512i rounded(Floats value, const VectorBounds &bounds) {
  return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, bounds.low), bounds.high));
}

inline Floats product(Ints sum, Floats multipliers) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(sum)), multipliers);
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
  return {_mm512_set1_ps(addend.multiplier), _mm512_set1_ps(addend.added_multiplier),
          reinterpret_cast<Ints>(_mm512_set1_epi32(addend.zero_point)), vector_bounds(addend.target)};
}

inline Ints settle_sum(Ints sum, Floats multipliers, const VectorBounds &bounds, Ints added, const VectorAddition &a) {
  const Ints own = reinterpret_cast<Ints>(rounded(product(sum, multipliers), bounds));
  const Floats value = _mm512_add_ps(product(own, a.multiplier), product(added - a.added_zero, a.added_multiplier));
  return reinterpret_cast<Ints>(rounded(value, a.result)) + a.result.zero;
}

inline Ints load_bytes(const uint8_t *from) {
  return reinterpret_cast<Ints>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from))));
}

inline Ints load_words(const int16_t *from) {
  return reinterpret_cast<Ints>(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
}

inline void store_bytes(uint8_t *to, Ints values) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(values)));
}

inline void store_words(int16_t *to, Ints values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(values)));
}

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "winograd_body.h"
