// Lays out weights for Winograd's transform, and transforms them.
#include "winograd_weights.h"

#include <algorithm>

#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kTaps = 9;

}  // namespace

void WinogradWeights::spread(const kvant_conv_layer &layer) {
  const int64_t vector = loops_.vector, channels = shape_.padded_channels;
  kernels_ = AlignedArray<int8_t>(shape_.kernels_size());
  for (int64_t o = 0; o < shape_.outputs; ++o) {
    const int64_t block = o / kWinogradBlock, within = o % kWinogradBlock, first = within / loops_.panel * loops_.panel;
    const int64_t panel = std::min(loops_.panel, shape_.width(block) - first);
    int8_t *to = kernels_.data() + (block * kWinogradBlock + first) * channels * kTaps;
    const int64_t number = (within - first) / vector, lane = (within - first) % vector;
    const int16_t *from = layer.values + o * shape_.channels * kTaps;
    for (int64_t c = 0; c < shape_.channels; ++c, from += kTaps) {
      int8_t *at = to + (c / 2 * panel + number * vector) * 2 * kTaps + lane * 2 + c % 2;
      for (int64_t tap = 0; tap < kTaps; ++tap) at[tap * 2 * vector] = static_cast<int8_t>(from[tap]);
    }
  }
}

// Pieces: kWinogradChannels channels of a block.
void WinogradWeights::transform(int64_t begin, int64_t end, int16_t *to) const {
  const int64_t channels = shape_.padded_channels, pieces = channels / kWinogradChannels;
  for (int64_t piece = begin; piece < end; ++piece) {
    const int64_t block = piece / pieces, channel = piece % pieces * kWinogradChannels, width = shape_.width(block);
    for (int64_t first = 0; first < width; first += loops_.panel) {
      const int64_t panel = std::min(loops_.panel, width - first), within = first * channels + channel * panel;
      loops_.kernels({kernels_.data() + (block * kWinogradBlock * channels + within) * kTaps,
                      panel / loops_.vector * kWinogradChannels / 2, to + shape_.begin(block) + within,
                      shape_.plane(block)});
    }
  }
}

void WinogradWeights::transform_all(int16_t *to) const {
  parallel(shape_.blocks() * shape_.padded_channels / kWinogradChannels, 1, [&](int64_t begin, int64_t end) -> int32_t {
    transform(begin, end, to);
    return KVANT_OK;
  });
}

WinogradWeights::WinogradWeights(const kvant_conv_layer &layer, const WinogradLoops &loops, bool late)
    : shape_(layer), loops_(loops), late_(late) {
  spread(layer);
  if (late) return;
  kept_ = AlignedArray<int16_t>(shape_.all_points());
  transform_all(kept_.data());
  kernels_ = AlignedArray<int8_t>();
}

const int16_t *WinogradWeights::at_points(int16_t *room) const {
  if (!late_) return kept_.data();
  transform_all(room);
  return room;
}

}  // namespace kvant
