// Direct convolution in vectors of 128 bits. Included by the source file of an
// instruction set, which defines KVANT_ISA, and after this kVectors and TilePixels, as its registers allow.
#pragma once

#include "direct.h"
#include "vectors_portable.h"

namespace kvant {
namespace KVANT_ISA {
namespace {

constexpr int64_t kAhead = 2048;
constexpr int64_t kApart = 0;

inline Vector zero() { return Vector{}; }
inline Vector load(const uint8_t *from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline void store(int32_t *to, Vector value) { __builtin_memcpy(to, &value, sizeof value); }
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

inline Floats load_floats(const float *from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
inline Floats splat(float value) { return Floats{} + value; }
template <int64_t V, typename T>
inline void load_integers(const T *from, int64_t count, Floats (&values)[V]) {
  for (int64_t v = 0; v < V; ++v) {
    values[v] = Floats{};
    for (int64_t i = 0; i < kLanes && v * kLanes + i < count; ++i) values[v][i] = static_cast<float>(from[v * kLanes + i]);
  }
}

struct Shorts {
  static constexpr int64_t kTogether = 1;
  static inline Vector add(Vector sum, Vector pixel, Vector weights) {
#if defined(__SSE2__)  // part of every x86-64
    return sum + reinterpret_cast<Vector>(__builtin_ia32_pmaddwd128(reinterpret_cast<Halves>(pixel),
                                                                    reinterpret_cast<Halves>(weights)));
#elif defined(__aarch64__)
    const int16x4_t both = vget_low_s16(reinterpret_cast<int16x8_t>(pixel));
    const int16x8_t lanes = reinterpret_cast<int16x8_t>(weights);
    const int16x4_t first = vget_low_s16(vuzp1q_s16(lanes, lanes)), second = vget_low_s16(vuzp2q_s16(lanes, lanes));
    return reinterpret_cast<Vector>(
        vmlal_lane_s16(vmlal_lane_s16(reinterpret_cast<int32x4_t>(sum), first, both, 0), second, both, 1));
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
    if (bytes_) return write<uint8_t>(whole, y);
    write<int16_t>(whole, y);
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
    if (kSimple == Simple::kShorts) return write<int16_t>(whole, y);
    write<uint8_t>(whole, y);
  }

 private:
  template <typename Out>
  void write(const Vector (&whole)[V], uint8_t *y) const {
    Out results[V * kLanes];
    narrow(whole, results);
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
