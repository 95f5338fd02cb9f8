// Transforms weights, and proves that sums of them over channels do not overflow.
#include "transform_weights.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

#include "threads.h"
#include "transform_fields.h"

namespace kvant {
namespace transform {
namespace {

// The largest sum of magnitudes of an output's weights, for pairs from `weights` on.
int64_t largest_sum(const int16_t *weights, int64_t pairs, int64_t lanes) {
  int32_t sums[kMostLanes] = {};
  for (const int16_t *end = weights + pairs * 2 * lanes; weights < end; weights += 2 * lanes) {
    for (int64_t i = 0; i < lanes; ++i) sums[i] += std::abs(weights[2 * i]) + std::abs(weights[2 * i + 1]);
  }
  return *std::max_element(sums, sums + lanes);
}

}  // namespace

void PointWeights::spread(const kvant_conv_layer &layer) {
  const int64_t lanes = transforms_.lanes, taps = shape_.taps();
  kernels_ = AlignedArray<int8_t>(groups() * shape_.pairs * kernel_size());
  for (int64_t output = 0; output < shape_.outputs; ++output) {
    const int16_t *from = layer.values + output * shape_.channels * taps;
    for (int64_t channel = 0; channel < shape_.channels; ++channel) {
      int8_t *to = kernels_.data() + (output / lanes * shape_.pairs + channel / 2) * kernel_size();
      to += channel % 2 * taps * lanes + output % lanes;
      for (int64_t tap = 0; tap < taps; ++tap) to[tap * lanes] = static_cast<int8_t>(*from++);
    }
  }
}

void PointWeights::transform(int64_t item, int16_t *to) const {
  const int64_t part = item / groups();
  const int8_t *kernels = kernels_.data() + item % groups() * shape_.pairs * kernel_size();
  for (int64_t pair = 0; pair < shape_.pairs; ++pair) {
    transforms_.forward_kernels({&field_->moduli[part / kResidues], part % kResidues, kernels + pair * kernel_size(),
                                 {shape_.kernel[0], shape_.kernel[1]}, to + pair * 2 * transforms_.lanes, point_size()});
  }
}

const int16_t *PointWeights::at_points(int64_t item, int16_t *room) const {
  if (!late_) return kept_.data() + item * item_size();
  transform(item, room);
  return room;
}

// Whether no sum of a segment can leave int32, nor `shrink` int16. Transformed pixels are within R; what a segment
// starts from is shrink's 16 bits times `wrap`; shrink's numerator is the sum - q p with |q| <= 2^15, so that within
// 2^31 - 1 its quotient by 2^16 fits. Every partial sum of a segment is within the same bound.
bool PointWeights::item_fits(int64_t item, const int16_t *weights, int64_t segments) const {
  const Modulus &modulus = field_->moduli[item / groups() / kResidues];
  for (int64_t point = 0; point < kPartPoints; ++point, weights += point_size()) {
    for (int64_t i = 0; i < segments; ++i) {
      const int64_t from = shape_.pairs * i / segments, to = shape_.pairs * (i + 1) / segments;
      const int64_t largest = largest_sum(weights + from * 2 * transforms_.lanes, to - from, transforms_.lanes);
      const int64_t before = i == 0 ? 0 : int64_t{32768} * std::abs(modulus.wrap);
      if (before + reduced(modulus.prime) * largest + int64_t{32768} * modulus.prime > INT32_MAX) return false;
    }
  }
  return true;
}

bool PointWeights::sums_fit(int64_t segments) const {
  std::atomic<bool> fits{true};
  const int32_t status = parallel(items(), 1, [&](int64_t begin, int64_t end) -> int32_t {
    int16_t *const own = room();
    KVANT_REQUIRE(own != nullptr, KVANT_NO_MEMORY);
    for (int64_t item = begin; item < end && fits; ++item) {
      if (!item_fits(item, at_points(item, own), segments)) fits = false;
    }
    return KVANT_OK;
  });
  if (status != KVANT_OK) throw std::bad_alloc();
  return fits;
}

bool PointWeights::choose_segments() {
  // One pair adds less than 2^27, wraps and q p are less than 2^30: with as many segments as pairs, sums fit surely.
  for (segments_ = 1; segments_ <= shape_.pairs; ++segments_) {
    if (sums_fit(segments_)) return true;
  }
  return false;
}

bool PointWeights::pack(const kvant_conv_layer &layer, const Field &field) {
  field_ = &field;
  spread(layer);
  if (!late_) {
    kept_ = AlignedArray<int16_t>(items() * item_size());
    parallel(items(), 1, [this](int64_t begin, int64_t end) -> int32_t {
      for (int64_t item = begin; item < end; ++item) transform(item, kept_.data() + item * item_size());
      return KVANT_OK;
    });
    kernels_ = AlignedArray<int8_t>();
  }
  return choose_segments();
}

}  // namespace transform
}  // namespace kvant
