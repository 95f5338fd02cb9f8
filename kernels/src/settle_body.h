// From floats to the integers that are written. Included by source files of one instruction set, which define KVANT_ISA
// (a namespace); nothing here calls an inline function of a header.
#pragma once

#include "kvant.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

// 1.5 * 2^23: adding it rounds a float below 2^22 to an integer, half to even, which is then in the sum's lowest bits.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4b400000;

struct Bounds {
  float low, high;
  int32_t shift;  // from the bits of a rounded sum to the result
};

inline Bounds bounds_of(const kvant_target *target) {
  return {static_cast<float>(target->low - target->zero_point), static_cast<float>(target->high - target->zero_point),
          target->zero_point - kRounderBits};
}

// min(max(rne(v) + zero, low), high). Clamping first gives the same, since the bounds are integers, and keeps v small.
inline int32_t settle(float v, const Bounds &bounds) {
  v = v < bounds.low ? bounds.low : v;
  v = v > bounds.high ? bounds.high : v;
  v += kRounder;
  int32_t bits;
  __builtin_memcpy(&bits, &v, sizeof bits);
  return bits + bounds.shift;
}

// What is added to a convolution's results.
struct Addition {
  Bounds own, result;
  float multiplier, added_multiplier;
  int32_t added_zero;
};

inline Addition addition_of(const kvant_target &target, const kvant_addend &addend) {
  return {bounds_of(&target), bounds_of(&addend.target), addend.multiplier, addend.added_multiplier,
          addend.zero_point};
}

// A result before rounding, and what is added to it.
inline int32_t settle_sum(float v, int32_t added, const Addition &addition) {
  v = v < addition.own.low ? addition.own.low : v;
  v = v > addition.own.high ? addition.own.high : v;
  const float own = (v + kRounder) - kRounder;
  const float other = static_cast<float>(added - addition.added_zero);
  return settle(own * addition.multiplier + other * addition.added_multiplier, addition.result);
}

// W sums times their multipliers and what is added to them; `count` exist: most often all, which is a copy of constant
// size.
template <int64_t W, typename Sum, typename T>
inline __attribute__((always_inline)) void settle_sums(const Addition &addition, const Sum *sums,
                                                       const float *multipliers, const T *added, int64_t count, T *y) {
  T others[W], results[W];
  if (count >= W) {
    __builtin_memcpy(others, added, sizeof others);
  } else {
    for (int64_t i = 0; i < W; ++i) others[i] = i < count ? added[i] : T{0};
  }
#pragma GCC unroll 1  // vectors, not as many scalars
  for (int64_t i = 0; i < W; ++i) {
    results[i] = static_cast<T>(settle_sum(static_cast<float>(sums[i]) * multipliers[i], others[i], addition));
  }
  if (count >= W) {
    __builtin_memcpy(y, results, sizeof results);
  } else {
    for (int64_t i = 0; i < count; ++i) y[i] = results[i];
  }
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
