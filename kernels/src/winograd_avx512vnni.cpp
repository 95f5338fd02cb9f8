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

}  // namespace
}  // namespace avx512vnni
}  // namespace kvant

#include "winograd_body.h"
