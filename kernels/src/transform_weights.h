// A layer's weights at the points of the number-theoretic transform.
#pragma once

#include <cstdint>

#include "common.h"
#include "kvant.h"
#include "packing.h"
#include "transform.h"

namespace kvant {
namespace transform {

struct Field;

// Elements from point to point: an odd number of cache lines, so that points do not share cache sets.
inline int64_t spaced(int64_t elements) { return (divide_up(elements, 32) | 1) * 32; }

// Measures of a packed layer.
struct Shape {
  int64_t outputs, channels;
  int64_t padded_outputs, padded_channels;  // multiples of lanes
  int64_t pairs;
  int64_t kernel[2], tile[2];  // tile: of results

  Shape(const kvant_conv_layer &layer, int64_t lanes)
      : outputs(layer.outputs),
        channels(layer.channels),
        padded_outputs(round_up(outputs, lanes)),
        padded_channels(round_up(channels, lanes)),
        pairs(divide_up(channels, 2)),
        kernel{layer.kernel[0], layer.kernel[1]},
        tile{kSize + 1 - kernel[0], kSize + 1 - kernel[1]} {}

  int64_t taps() const { return kernel[0] * kernel[1]; }
};

// Weights are kept at all points, or late: kept as they are, and transformed in each run. An item is a part of the points
// for one group of `lanes` outputs: [point of the part][pair of channels][even and odd outputs][2].
class PointWeights {
 public:
  PointWeights(const Shape &shape, const Transforms &transforms, bool late)
      : shape_(shape), transforms_(transforms), late_(late) {}

  // Once; false if no number of segments keeps the sums of these weights within int32. Throws std::bad_alloc.
  bool pack(const kvant_conv_layer &layer, const Field &field);

  int64_t bytes() const { return late_ ? groups() * shape_.pairs * kernel_size() : items() * item_size() * 2; }
  int64_t segments() const { return segments_; }
  int64_t groups() const { return shape_.padded_outputs / transforms_.lanes; }
  int64_t items() const { return kParts * groups(); }
  int64_t point_size() const { return spaced(shape_.pairs * 2 * transforms_.lanes); }
  int64_t item_size() const { return kPartPoints * point_size(); }
  // Memory of the calling thread for one item's weights, if they are late; null where there is none.
  int16_t *room() const { return scratch_array<int16_t>(0, late_ ? item_size() : 0); }
  // Where an item's weights are: in `room`, if they are late.
  const int16_t *at_points(int64_t item, int16_t *room) const;

 private:
  int64_t kernel_size() const { return 2 * shape_.taps() * transforms_.lanes; }  // of a pair's kernels
  void spread(const kvant_conv_layer &layer);
  void transform(int64_t item, int16_t *to) const;
  bool choose_segments();
  bool sums_fit(int64_t segments) const;
  bool item_fits(int64_t item, const int16_t *weights, int64_t segments) const;

  Shape shape_;
  const Transforms &transforms_;
  bool late_;
  const Field *field_ = nullptr;
  int64_t segments_ = 1;
  AlignedArray<int8_t> kernels_;  // [group][pair][channel of the pair][tap][output of the group]
  AlignedArray<int16_t> kept_;
};

}  // namespace transform
}  // namespace kvant
