// What algorithms share when they pack a layer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "algorithm.h"
#include "common.h"

namespace kvant {

// A layer to keep: its pointers are good during packing only.
inline kvant_conv_layer without_pointers(kvant_conv_layer layer) {
  layer.values = nullptr;
  layer.bias = nullptr;
  layer.multipliers = nullptr;
  return layer;
}

inline bool fits_int8(const int16_t *values, int64_t count) {
  return std::all_of(values, values + count, [](int16_t value) { return value >= -128 && value <= 127; });
}

// No product of an int32 and the multiplier reaches 2^31.
inline bool keeps_int32(float multiplier) { return std::abs(multiplier) < 0.99f; }

// As far as the taps of these output pixels reach.
inline Reach reach_of_taps(const kvant_conv_layer &layer, const int64_t output_size[2], int64_t slack) {
  const auto along = [&](int axis) {
    return (output_size[axis] - 1) * layer.strides[axis] + (layer.kernel[axis] - 1) * layer.dilations[axis] + 1;
  };
  return {along(0), along(1), slack};
}

// Memory for packed weights: aligned to cache lines and filled with zeros.
template <typename T>
class AlignedArray {
 public:
  AlignedArray() = default;
  explicit AlignedArray(int64_t count) : count_(count) {
    int64_t bytes;
    if (!product({count, static_cast<int64_t>(sizeof(T))}, &bytes) || bytes > INT64_MAX - 64) throw std::bad_alloc();
    const size_t rounded = static_cast<size_t>(round_up(bytes + 1, 64));
    data_.reset(static_cast<T *>(allocate(static_cast<int64_t>(rounded))));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void *>(data_.get()), 0, rounded);
  }

  T *data() { return data_.get(); }
  const T *data() const { return data_.get(); }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

 private:
  struct Free {
    void operator()(T *data) const { std::free(data); }
  };
  std::unique_ptr<T[], Free> data_;
  int64_t count_ = 0;
};

}  // namespace kvant
