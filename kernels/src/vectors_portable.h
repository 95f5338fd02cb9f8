// Vectors of 128 bits in C++ that GCC and Clang have everywhere, and how real numbers in them become results. Included by
// source files, which define KVANT_ISA. With NEON, which is part of every aarch64, a few steps take its instructions: GCC 12
// takes apart what it has none of its own for.
#pragma once

#include <cstdint>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 4;
typedef int16_t Halves __attribute__((vector_size(16)));
typedef int32_t Vector __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

inline Floats to_float(Vector sums) { return __builtin_convertvector(sums, Floats); }

// Clamped, then rounded half to even.
inline Floats rounded(Floats value, Floats low, Floats high) {
#if defined(__aarch64__)
  return vrndnq_f32(vminq_f32(vmaxq_f32(value, low), high));
#else
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  value = value < low ? low : value;
  value = value > high ? high : value;
  return (value + kRounder) - kRounder;
#endif
}

// Integers that fit Out.
template <typename Out, int64_t V>
inline void narrow(const Vector (&whole)[V], Out (&results)[V * kLanes]) {
#if defined(__aarch64__)
  for (int64_t v = 0; v < V; ++v) {
    const int16x4_t shorts = vmovn_s32(whole[v]);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(shorts, shorts));
    __builtin_memcpy(results + v * kLanes, sizeof(Out) == 1 ? static_cast<const void *>(&bytes) : &shorts, sizeof(Out) * kLanes);
  }
#else
  int32_t settled[V * kLanes];
  __builtin_memcpy(settled, whole, sizeof settled);
  for (int64_t i = 0; i < V * kLanes; ++i) results[i] = static_cast<Out>(settled[i]);
#endif
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
