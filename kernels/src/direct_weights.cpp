// Packs weights for the direct loops.
#include "direct_weights.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "common.h"
#include "loops.h"

namespace kvant {

namespace portable {
extern const DirectLoops kDirectLoops;
}
#if defined(KVANT_HAVE_NEON)
namespace neondot {
extern const DirectLoops kDirectLoops;
}
#endif
#if defined(KVANT_HAVE_X86)
namespace avx2 {
extern const DirectLoops kDirectLoops;
}
namespace avxvnni {
extern const DirectLoops kDirectLoops;
}
namespace avx512vnni {
extern const DirectLoops kDirectLoops;
}
#endif

const DirectLoops &direct_loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return avx512vnni::kDirectLoops;
#if defined(KVANT_HAVE_AVXVNNI)
  if (isa() == Isa::kAvxVnni) return avxvnni::kDirectLoops;
#endif
  if (isa() == Isa::kAvx2) return avx2::kDirectLoops;
#endif
#if defined(KVANT_HAVE_NEON)
  if (isa() == Isa::kNeonDot) return neondot::kDirectLoops;
#endif
  return portable::kDirectLoops;
}

namespace {

// Groups that are computed as one, the weights between them zero, so that a vector of outputs is used better.
int64_t merged_groups(const kvant_conv_layer &layer, int64_t lanes) {
  const int64_t outputs = layer.outputs / layer.groups;
  int64_t merged = 1;
  for (int64_t count = 2; count <= layer.groups && count * outputs <= lanes; ++count) {
    if (layer.groups % count == 0) merged = count;
  }
  return merged;
}

// Where among the lanes of its block an output lies. Packing sums of 32 bits to bytes puts fours of one vector after the
// other beside each other; outputs that were dealt out like that come together in their order.
int64_t lane_of(const DirectBlock &block, int64_t output) {
  constexpr int64_t kFour = 4;
  const DirectLoops &loops = direct_loops();
  if (!loops.woven || block.vectors != loops.vectors) return output;
  const int64_t four = output / kFour;
  return four % block.vectors * loops.lanes + four / block.vectors * kFour + output % kFour;
}

}  // namespace

DirectWeights::DirectWeights(const kvant_conv_layer &layer) : layer_(without_pointers(layer)) {
  const int64_t taps = layer.kernel[0] * layer.kernel[1];
  stores_bytes = fits_int8(layer.values, layer.outputs * depth() * taps);
  bytes = stores_bytes && direct_loops().bytes != nullptr && layer.dtype == KVANT_UINT8 && !layer.sums.wide;
  merged = merged_groups(layer, direct_loops().lanes);
  channels = merged * depth();
  rows = merged == layer.groups && layer.dilations[1] == 1;
  runs = rows ? layer.kernel[0] : taps;
  groups = divide_up(rows ? layer.kernel[1] * channels : channels, elements());
  cut_blocks();
  pack(layer);
  stretch = layer.sums.wide ? longest_stretch() : 1;
}

// Blocks of a group are as equal as whole vectors allow.
void DirectWeights::cut_blocks() {
  const int64_t lanes = direct_loops().lanes, outputs = layer_.outputs / layer_.groups * merged;
  const int64_t vectors = divide_up(outputs, lanes), count = divide_up(vectors, direct_loops().vectors);
  int64_t all = 0, all_lanes = 0;
  for (int64_t g = 0; g < layer_.groups / merged; ++g) {
    for (int64_t b = 0; b < count; ++b) {
      const int64_t first = vectors * b / count, own = vectors * (b + 1) / count - first;
      const int64_t used = std::min(own * lanes, outputs - first * lanes);
      blocks.push_back({g * outputs + first * lanes, used, own, g * channels, all, all_lanes});
      all += stored_bytes(blocks.back());
      all_lanes += own * lanes;
    }
  }
  weights = AlignedArray<uint8_t>(all);
  bias = AlignedArray<int64_t>(all_lanes);
  narrow_bias = AlignedArray<int32_t>(all_lanes);
  multipliers = AlignedArray<float>(all_lanes);
}

void DirectWeights::pack(const kvant_conv_layer &layer) {
  const bool whole = merged == 1 && depth() % elements() == 0;
  for (const DirectBlock &block : blocks) {
    if (whole && bytes) {
      pack_block<int8_t, 4>(layer, block);
    } else if (whole) {
      stores_bytes ? pack_block<int8_t, 2>(layer, block) : pack_block<int16_t, 2>(layer, block);
    } else {
      for (int64_t i = 0; i < block.outputs; ++i) pack_output(layer, block, i);
    }
  }
}

// The same as pack_output for all outputs of a block, where no group of elements spans two taps: what is written is one
// run, and what is read of each output stays within the first-level cache until all its taps are done.
template <typename Stored, int64_t kElements>
void DirectWeights::pack_block(const kvant_conv_layer &layer, const DirectBlock &block) {
  const int64_t taps = layer.kernel[0] * layer.kernel[1], width = block.vectors * direct_loops().lanes;
  const int16_t *values = layer.values + block.first_output * depth() * taps;
  Stored *first = reinterpret_cast<Stored *>(weights.data() + block.weights);
  for (int64_t c = 0; c < depth(); c += kElements) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t run = rows ? tap / layer.kernel[1] : tap;
      const int64_t element = (rows ? tap % layer.kernel[1] * channels : 0) + c;
      Stored *to = first + (run * groups + element / kElements) * width * kElements;
      for (int64_t i = 0; i < block.outputs; ++i) {
        const int16_t *from = values + (i * depth() + c) * taps + tap;
        Stored *own = to + lane_of(block, i) * kElements;
        for (int64_t e = 0; e < kElements; ++e) own[e] = static_cast<Stored>(from[e * taps]);
      }
    }
  }
  for (int64_t i = 0; i < block.outputs; ++i) {
    const int16_t *own = values + i * depth() * taps;
    fold(layer, block, i, std::accumulate(own, own + depth() * taps, int64_t{0}));
  }
}

// Whether the sum of any stretch of so many groups surely fits int32, whatever the input is.
bool DirectWeights::holds(int64_t length) const {
  const int64_t most = layer_.dtype == KVANT_UINT8 ? std::max(layer_.zero_point, 255 - layer_.zero_point) : 32768;
  for (const DirectBlock &block : blocks) {
    const int64_t width = block.vectors * direct_loops().lanes * 2;
    for (int64_t run = 0; run < runs; ++run) {
      for (int64_t first = 0; first < groups; first += length) {
        for (int64_t lane = 0; lane < width; lane += 2) {
          int64_t sum = 0;
          for (int64_t g = first; g < std::min(groups, first + length); ++g) {
            const int64_t place = (run * groups + g) * width + lane;
            sum += std::abs(stored(block, place)) + std::abs(stored(block, place + 1));
          }
          if (sum * most > INT32_MAX) return false;
        }
      }
    }
  }
  return true;
}

// A weight of a block where it is kept.
int64_t DirectWeights::stored(const DirectBlock &block, int64_t place) const {
  const uint8_t *at = weights.data() + block.weights + place * stored_size();
  return stores_bytes ? *reinterpret_cast<const int8_t *>(at) : *reinterpret_cast<const int16_t *>(at);
}

// From the real weights: products of the largest ones would allow a few only.
int64_t DirectWeights::longest_stretch() const {
  int64_t length = std::max<int64_t>(1, layer_.sums.terms / 2);
  while (length < groups && holds(2 * length)) length *= 2;
  return length;
}

// Bias and multiplier of an output; the zero point of raw input moves into the bias.
void DirectWeights::fold(const kvant_conv_layer &layer, const DirectBlock &block, int64_t index, int64_t sum) {
  const int64_t output = block.first_output + index;
  const int64_t share = bytes ? layer.zero_point - direct_loops().offset : 0;
  const uint64_t folded = static_cast<uint64_t>(share) * static_cast<uint64_t>(sum);
  const int64_t lane = block.lanes + lane_of(block, index);
  bias.data()[lane] = static_cast<int64_t>(static_cast<uint64_t>(layer.bias[output]) - folded);
  narrow_bias.data()[lane] = static_cast<int32_t>(bias.data()[lane]);
  multipliers.data()[lane] = layer.multipliers[output];
  bounded = bounded && keeps_int32(layer.multipliers[output]);
}

// One output's weights: element e of run r is at [r][e / elements][lane][e % elements] of its block.
void DirectWeights::pack_output(const kvant_conv_layer &layer, const DirectBlock &block, int64_t index) {
  const int64_t output = block.first_output + index, taps = layer.kernel[0] * layer.kernel[1];
  const int64_t width = block.vectors * direct_loops().lanes;
  const int64_t group = output / (layer.outputs / layer.groups) % merged;  // among the merged ones
  const int16_t *values = layer.values + output * depth() * taps;
  uint8_t *to = weights.data() + block.weights + lane_of(block, index) * elements() * stored_size();
  int64_t sum = 0;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t run = rows ? tap / layer.kernel[1] : tap;
    const int64_t first = (rows ? tap % layer.kernel[1] * channels : 0) + group * depth();
    for (int64_t c = 0; c < depth(); ++c) {
      const int64_t element = first + c;
      const int16_t value = values[c * taps + tap];
      const int64_t place = (run * groups + element / elements()) * width * elements() + element % elements();
      std::memcpy(to + place * stored_size(), &value, static_cast<size_t>(stored_size()));  // little-endian
      sum += value;
    }
  }
  fold(layer, block, index, sum);
}

}  // namespace kvant
