// A layer's weights at the points of Winograd's transform.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"
#include "kvant.h"
#include "packing.h"
#include "winograd.h"

namespace kvant {

// Measures of a packed layer: outputs are cut into blocks, whose last one may be narrower, blocks into panels.
struct WinogradShape {
  int64_t outputs, channels;                // that exist
  int64_t padded_outputs, padded_channels;  // multiples of kWinogradStep and kWinogradChannels

  explicit WinogradShape(const kvant_conv_layer &layer)
      : outputs(layer.outputs),
        channels(layer.channels),
        padded_outputs(round_up(outputs, kWinogradStep)),
        padded_channels(round_up(channels, kWinogradChannels)) {}

  int64_t blocks() const { return divide_up(padded_outputs, kWinogradBlock); }
  int64_t width(int64_t block) const { return std::min(kWinogradBlock, padded_outputs - block * kWinogradBlock); }
  // Elements from point to point of a block: planes a power of two apart would push each other out of the cache.
  int64_t plane(int64_t block) const { return width(block) * padded_channels + kWinogradPadding; }
  int64_t begin(int64_t block) const { return block * kWinogradPoints * plane(0); }
  int64_t all_points() const { return begin(blocks() - 1) + kWinogradPoints * plane(blocks() - 1); }
  int64_t kernels_size() const { return padded_outputs * padded_channels * 9; }  // of weights that are not transformed
};

// Weights are kept at all points, or late: kept as they are, and transformed in each run into room that the caller has.
// At points they lie as [block][point][panel][pair of channels][output][2].
class WinogradWeights {
 public:
  // Of a layer whose weights fit int8. Throws std::bad_alloc.
  WinogradWeights(const kvant_conv_layer &layer, const WinogradLoops &loops, bool late);

  int64_t bytes() const { return late_ ? kernels_.bytes() : kept_.bytes(); }
  // Weights at all points: in `room`, if they are late. A run needs so many elements of it; all threads transform them.
  int64_t room() const { return late_ ? shape_.all_points() : 0; }
  const int16_t *at_points(int16_t *room) const;

 private:
  void spread(const kvant_conv_layer &layer);
  void transform(int64_t begin, int64_t end, int16_t *to) const;
  void transform_all(int16_t *to) const;

  WinogradShape shape_;
  const WinogradLoops &loops_;
  bool late_;
  AlignedArray<int8_t> kernels_;  // [block][panel][pair of channels][vector of outputs][tap][output][2]
  AlignedArray<int16_t> kept_;
};

}  // namespace kvant
