// Vectors of 128 bits for direct convolution, in C++ that GCC and Clang have everywhere. Included by the source file of an
// instruction set, which defines KVANT_ISA.
#pragma once

#include "direct.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kLanes = 4;
constexpr int64_t kVectors = 2;
constexpr int64_t kAhead = 2048;
constexpr int64_t kApart = 0;
typedef int16_t Halves __attribute__((vector_size(16)));
typedef int32_t Vector __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

template <int64_t V>
struct TilePixels {
  static constexpr int64_t kCount = V == 2 ? 4 : 6;
};

inline Vector zero() { return Vector{}; }
inline Vector load(const uint8_t *from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline void store(int32_t *to, Vector value) { __builtin_memcpy(to, &value, sizeof value); }
inline Floats to_float(Vector sums) { return __builtin_convertvector(sums, Floats); }
inline Vector broadcast(const uint8_t *group) {
  int32_t bits;
  __builtin_memcpy(&bits, group, sizeof bits);
  return Vector{} + bits;
}
inline Floats from_wide(const int64_t *sums) {
  Floats values;
  for (int64_t i = 0; i < kLanes; ++i) values[i] = static_cast<float>(sums[i]);
  return values;
}

constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds half to even

inline Floats load_floats(const float *from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline Floats splat(float value) { return Floats{} + value; }
inline Floats rounded(Floats value, Floats low, Floats high) {
  value = value < low ? low : value;
  value = value > high ? high : value;
  return (value + kRounder) - kRounder;
}
template <int64_t V, typename T>
inline void load_integers(const T *from, int64_t count, Floats (&values)[V]) {
  for (int64_t v = 0; v < V; ++v) {
    values[v] = Floats{};
    for (int64_t i = 0; i < kLanes && v * kLanes + i < count; ++i) values[v][i] = static_cast<float>(from[v * kLanes + i]);
  }
}

struct Shorts {
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
#if defined(__SSE2__)  // part of every x86-64
    return sum + reinterpret_cast<Vector>(__builtin_ia32_pmaddwd128(reinterpret_cast<Halves>(pixel),
                                                                    reinterpret_cast<Halves>(weights)));
#else  // which half holds which element does not matter as long as both operands agree
    return sum + ((pixel << 16) >> 16) * ((weights << 16) >> 16) + (pixel >> 16) * (weights >> 16);
#endif
  }
};

template <int64_t V>
class Finish {
 public:
  static constexpr bool kAdds = false;

  explicit Finish(const DirectWork &work)
      : bytes_(work.target->dtype == KVANT_UINT8), simple_(work.addend == nullptr), outputs_(work.outputs),
        zero_(Floats{} + static_cast<float>(work.target->zero_point)),
        low_(Floats{} + static_cast<float>(work.target->low - work.target->zero_point)),
        high_(Floats{} + static_cast<float>(work.target->high - work.target->zero_point)) {
    __builtin_memcpy(multipliers_, work.multipliers, sizeof multipliers_);
  }

  void store(const Floats (&values)[V], uint8_t *y) const {
    Vector whole[V];
    for (int64_t v = 0; v < V; ++v) whole[v] = settle(values[v] * multipliers_[v]);
    if (bytes_) return narrow<uint8_t>(whole, y);
    narrow<int16_t>(whole, y);
  }

  // Nothing added.
  bool simple_bytes() const { return simple_ && bytes_; }
  bool all_bytes() const { return false; }
  bool simple_shorts() const { return simple_ && !bytes_; }
  void convert(const Vector (&sums)[V], Floats (&values)[V]) const {
    for (int64_t v = 0; v < V; ++v) values[v] = to_float(sums[v]);
  }
  void scale(Floats (&values)[V], const uint8_t *) const {
    for (int64_t v = 0; v < V; ++v) values[v] = values[v] * multipliers_[v];
  }
  void round(const Floats (&values)[V], Vector (&whole)[V]) const {
    for (int64_t v = 0; v < V; ++v) whole[v] = settle(values[v]);
  }
  template <Simple kSimple>
  void pack(const Vector (&whole)[V], uint8_t *y) const {
    if (kSimple == Simple::kShorts) return narrow<int16_t>(whole, y);
    narrow<uint8_t>(whole, y);
  }

 private:
  template <typename Out>
  void narrow(const Vector (&whole)[V], uint8_t *y) const {
    int32_t settled[V * kLanes];
    Out results[V * kLanes];
    __builtin_memcpy(settled, whole, sizeof settled);
    for (int64_t i = 0; i < V * kLanes; ++i) results[i] = static_cast<Out>(settled[i]);
    if (outputs_ == V * kLanes) {
      __builtin_memcpy(y, results, sizeof results);
    } else {
      __builtin_memcpy(y, results, static_cast<uint64_t>(outputs_) * sizeof(Out));
    }
  }

  Vector settle(Floats v) const {
    return __builtin_convertvector(rounded(v, low_, high_) + zero_, Vector);
  }

  bool bytes_, simple_;
  int64_t outputs_;
  Floats zero_, low_, high_;
  Floats multipliers_[V];
};

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
