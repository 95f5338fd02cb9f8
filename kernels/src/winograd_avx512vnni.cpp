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

inline Shorts widen(const uint8_t *from) {
  return reinterpret_cast<Shorts>(_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
}

inline Shorts widen(const int8_t *from) {
  return reinterpret_cast<Shorts>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from))));
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

inline Floats floats_of(float value) { return _mm512_set1_ps(value); }
inline Ints ints_of(int32_t value) { return reinterpret_cast<Ints>(_mm512_set1_epi32(value)); }

inline Floats product(Ints integers, Floats factors) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(integers)), factors);
}

inline Ints rounded(Floats value, Floats low, Floats high) {
  return reinterpret_cast<Ints>(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, low), high)));
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

struct ByteBounds {
  __m512i zero, low, high;
};

inline ByteBounds byte_bounds(const kvant_target &target) {
  return {_mm512_set1_epi16(static_cast<int16_t>(target.zero_point)), _mm512_set1_epi8(static_cast<char>(target.low)),
          _mm512_set1_epi8(static_cast<char>(target.high))};
}

inline __m512i pack(Floats first, Floats second, const ByteBounds &bounds) {
  const __m512i words = _mm512_packs_epi32(_mm512_cvtps_epi32(first), _mm512_cvtps_epi32(second));
  return _mm512_adds_epi16(words, bounds.zero);
}

// Packed, each 128 bits hold four outputs of all pixels.
inline void store_pixels(uint8_t *to, int64_t right, const Floats (&values)[4], const ByteBounds &bounds) {
  __m512i bytes = _mm512_packus_epi16(pack(values[0], values[1], bounds), pack(values[2], values[3], bounds));
  bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, bounds.low), bounds.high);
  bytes = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_castsi512_si128(bytes));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + right), _mm512_extracti32x4_epi32(bytes, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 2 * right), _mm512_extracti32x4_epi32(bytes, 2));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 3 * right), _mm512_extracti32x4_epi32(bytes, 3));
}

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "winograd_body.h"
