// Direct convolution: weights in blocks of outputs, work in blocks times stretches of pixels.
#include "direct.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "packing.h"
#include "threads.h"

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

namespace {

constexpr int64_t kChunkPixels = 96;
constexpr int64_t kWidenedPixels = 4096;  // or more share weights which were widened for them
constexpr int64_t kItemProducts = int64_t{1} << 23;  // of one work item, or more: handing it out should cost nothing
constexpr int64_t kNearWeights = int64_t{1} << 18;   // bytes that stay in the second-level cache beside pixels
constexpr int64_t kItemsPerThread = 4;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kSlack = 64;               // elements behind centred pixels
constexpr int64_t kCentredGrain = 1 << 15;   // elements; fewer are not worth a second thread
constexpr int kCentredSlot = 3, kWidenedSlot = 4;  // of scratch memory

bool is_one(const int64_t (&pair)[2]) { return pair[0] == 1 && pair[1] == 1; }

const DirectLoops &direct_loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return avx512vnni::kDirectLoops;
  if (isa() == Isa::kAvxVnni) return avxvnni::kDirectLoops;
  if (isa() == Isa::kAvx2) return avx2::kDirectLoops;
#endif
#if defined(KVANT_HAVE_NEON)
  if (isa() == Isa::kNeonDot) return neondot::kDirectLoops;
#endif
  return portable::kDirectLoops;
}

// Groups that are computed as one, the weights between them zero, so that a vector of outputs is used better.
int64_t merged_groups(const kvant_conv_layer &layer, int64_t lanes) {
  const int64_t outputs = layer.outputs / layer.groups;
  int64_t merged = 1;
  for (int64_t count = 2; count <= layer.groups && count * outputs <= lanes; ++count) {
    if (layer.groups % count == 0) merged = count;
  }
  return merged;
}

// Consecutive outputs of one (merged) group.
struct Block {
  int64_t first_output, outputs, vectors;
  int64_t first_channel;
  int64_t weights;  // offset, bytes
  int64_t lanes;    // offset of its first bias
};

// Where among the lanes of its block an output lies. Packing sums of 32 bits to bytes puts fours of one vector after the
// other beside each other; outputs that were dealt out like that come together in their order.
int64_t lane_of(const Block &block, int64_t output) {
  constexpr int64_t kFour = 4;
  const DirectLoops &loops = direct_loops();
  if (!loops.woven || block.vectors != loops.vectors) return output;
  const int64_t four = output / kFour;
  return four % block.vectors * loops.lanes + four / block.vectors * kFour + output % kFour;
}

class Direct : public Algorithm {
 public:
  explicit Direct(const kvant_conv_layer &layer);

  const char *name() const override { return "direct"; }
  int64_t bytes() const override { return weights_.bytes() + bias_.bytes() + multipliers_.bytes(); }
  Format format() const override { return reads_raw() || converts() ? Format::kRaw : Format::kCentred16; }
  Reach reach(const int64_t output_size[2]) const override;
  int32_t run(const Job &job) const override;
  bool adds_itself() const override { return true; }
  bool runs_lines() const override { return true; }
  int32_t run_lines(const Job &job, int64_t begin, int64_t end) const override;

 private:
  int64_t elements() const { return bytes_ ? 4 : 2; }  // of a group
  int64_t element_size() const { return kGroupBytes / elements(); }
  int64_t stored_size() const { return stores_bytes_ ? 1 : 2; }
  int64_t stored_bytes(const Block &block) const { return values_of(block) * stored_size(); }
  int64_t values_of(const Block &block) const { return products_of_vector() * block.vectors; }
  // Whether each work item widens the weights that it needs: kept as int16 they would take twice the memory.
  bool widens() const { return stores_bytes_ && !bytes_; }
  int64_t depth() const { return layer_.channels / layer_.groups; }
  void cut_blocks();
  bool holds(int64_t stretch) const;
  int64_t stored(const Block &block, int64_t place) const;
  int64_t longest_stretch() const;
  void pack(const kvant_conv_layer &layer);
  void pack_output(const kvant_conv_layer &layer, const Block &block, int64_t index);
  template <typename Stored, int64_t kElements>
  void pack_block(const kvant_conv_layer &layer, const Block &block);
  void fold(const kvant_conv_layer &layer, const Block &block, int64_t index, int64_t sum);
  bool reads_raw() const { return bytes_ || layer_.dtype == KVANT_INT16; }
  // Whether it centres the pixels of each work item itself, rather than those of the whole input before.
  bool converts() const { return !reads_raw() && merged_ == layer_.groups && runs_ == 1 && is_one(layer_.kernel) && is_one(layer_.strides); }
  int64_t products_of_vector() const { return runs_ * groups_ * elements() * direct_loops().lanes; }  // of a pixel
  int64_t chunk_of(int64_t pixels, int64_t tile, int64_t vectors, int64_t blocks) const;
  std::vector<int64_t> offsets(const Padded &x) const;
  DirectWork describe(const Job &job, const std::vector<int64_t> &offsets) const;
  int32_t run_block(const Job &job, const Block &block, DirectWork work) const;
  int32_t run_pixels(const Job &job, DirectWork work) const;
  int32_t run_by_pixels(const Job &job, const DirectWork &whole) const;
  int32_t run_by_blocks(const Job &job, const DirectWork &whole) const;

  kvant_conv_layer layer_;  // pointers are null
  bool bytes_;               // uint8 meets int8
  bool stores_bytes_;        // weights are kept as int8
  int64_t merged_;           // groups that are one
  int64_t channels_;         // of them together
  bool rows_;                // a run is a row of the kernel rather than one tap
  int64_t runs_, groups_;    // groups of elements of a run
  std::vector<Block> blocks_;
  AlignedArray<uint8_t> weights_;
  AlignedArray<int64_t> bias_;
  AlignedArray<int32_t> narrow_bias_;
  bool bounded_ = true;
  int64_t stretch_ = 1;  // of wide sums: groups that int32 surely holds
  AlignedArray<float> multipliers_;
};

Direct::Direct(const kvant_conv_layer &layer) : layer_(without_pointers(layer)) {
  const int64_t taps = layer.kernel[0] * layer.kernel[1];
  stores_bytes_ = fits_int8(layer.values, layer.outputs * depth() * taps);
  bytes_ = stores_bytes_ && direct_loops().bytes != nullptr && layer.dtype == KVANT_UINT8 && !layer.sums.wide;
  merged_ = merged_groups(layer, direct_loops().lanes);
  channels_ = merged_ * depth();
  rows_ = merged_ == layer.groups && layer.dilations[1] == 1;
  runs_ = rows_ ? layer.kernel[0] : taps;
  groups_ = divide_up(rows_ ? layer.kernel[1] * channels_ : channels_, elements());
  cut_blocks();
  pack(layer);
  stretch_ = layer.sums.wide ? longest_stretch() : 1;
}

// Blocks of a group are as equal as whole vectors allow.
void Direct::cut_blocks() {
  const int64_t lanes = direct_loops().lanes, outputs = layer_.outputs / layer_.groups * merged_;
  const int64_t vectors = divide_up(outputs, lanes), count = divide_up(vectors, direct_loops().vectors);
  int64_t weights = 0, bias = 0;
  for (int64_t g = 0; g < layer_.groups / merged_; ++g) {
    for (int64_t b = 0; b < count; ++b) {
      const int64_t first = vectors * b / count, own = vectors * (b + 1) / count - first;
      const int64_t used = std::min(own * lanes, outputs - first * lanes);
      blocks_.push_back({g * outputs + first * lanes, used, own, g * channels_, weights, bias});
      weights += stored_bytes(blocks_.back());
      bias += own * lanes;
    }
  }
  weights_ = AlignedArray<uint8_t>(weights);
  bias_ = AlignedArray<int64_t>(bias);
  narrow_bias_ = AlignedArray<int32_t>(bias);
  multipliers_ = AlignedArray<float>(bias);
}

void Direct::pack(const kvant_conv_layer &layer) {
  const bool whole = merged_ == 1 && depth() % elements() == 0;
  for (const Block &block : blocks_) {
    if (whole && bytes_) {
      pack_block<int8_t, 4>(layer, block);
    } else if (whole) {
      stores_bytes_ ? pack_block<int8_t, 2>(layer, block) : pack_block<int16_t, 2>(layer, block);
    } else {
      for (int64_t i = 0; i < block.outputs; ++i) pack_output(layer, block, i);
    }
  }
}

// The same as pack_output for all outputs of a block, where no group of elements spans two taps: what is written is one
// run, and what is read of each output stays within the first-level cache until all its taps are done.
template <typename Stored, int64_t kElements>
void Direct::pack_block(const kvant_conv_layer &layer, const Block &block) {
  const int64_t taps = layer.kernel[0] * layer.kernel[1], width = block.vectors * direct_loops().lanes;
  const int16_t *values = layer.values + block.first_output * depth() * taps;
  Stored *weights = reinterpret_cast<Stored *>(weights_.data() + block.weights);
  for (int64_t c = 0; c < depth(); c += kElements) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t run = rows_ ? tap / layer.kernel[1] : tap;
      const int64_t element = (rows_ ? tap % layer.kernel[1] * channels_ : 0) + c;
      Stored *to = weights + (run * groups_ + element / kElements) * width * kElements;
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
bool Direct::holds(int64_t stretch) const {
  const int64_t most = layer_.dtype == KVANT_UINT8 ? std::max(layer_.zero_point, 255 - layer_.zero_point) : 32768;
  for (const Block &block : blocks_) {
    const int64_t width = block.vectors * direct_loops().lanes * 2;
    for (int64_t run = 0; run < runs_; ++run) {
      for (int64_t first = 0; first < groups_; first += stretch) {
        for (int64_t lane = 0; lane < width; lane += 2) {
          int64_t sum = 0;
          for (int64_t g = first; g < std::min(groups_, first + stretch); ++g) {
            const int64_t place = (run * groups_ + g) * width + lane;
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
int64_t Direct::stored(const Block &block, int64_t place) const {
  const uint8_t *at = weights_.data() + block.weights + place * stored_size();
  return stores_bytes_ ? *reinterpret_cast<const int8_t *>(at) : *reinterpret_cast<const int16_t *>(at);
}

// From the real weights: products of the largest ones would allow a few only.
int64_t Direct::longest_stretch() const {
  int64_t stretch = std::max<int64_t>(1, layer_.sums.terms / 2);
  while (stretch < groups_ && holds(2 * stretch)) stretch *= 2;
  return stretch;
}

// Bias and multiplier of an output; the zero point of raw input moves into the bias.
void Direct::fold(const kvant_conv_layer &layer, const Block &block, int64_t index, int64_t sum) {
  const int64_t output = block.first_output + index;
  const int64_t share = bytes_ ? layer.zero_point - direct_loops().offset : 0;
  const uint64_t folded = static_cast<uint64_t>(share) * static_cast<uint64_t>(sum);
  const int64_t lane = block.lanes + lane_of(block, index);
  bias_.data()[lane] = static_cast<int64_t>(static_cast<uint64_t>(layer.bias[output]) - folded);
  narrow_bias_.data()[lane] = static_cast<int32_t>(bias_.data()[lane]);
  multipliers_.data()[lane] = layer.multipliers[output];
  bounded_ = bounded_ && keeps_int32(layer.multipliers[output]);
}

// One output's weights: element e of run r is at [r][e / elements][lane][e % elements] of its block.
void Direct::pack_output(const kvant_conv_layer &layer, const Block &block, int64_t index) {
  const int64_t output = block.first_output + index, taps = layer.kernel[0] * layer.kernel[1];
  const int64_t width = block.vectors * direct_loops().lanes;
  const int64_t group = output / (layer.outputs / layer.groups) % merged_;  // among the merged ones
  const int16_t *values = layer.values + output * depth() * taps;
  uint8_t *to = weights_.data() + block.weights + lane_of(block, index) * elements() * stored_size();
  int64_t sum = 0;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t run = rows_ ? tap / layer.kernel[1] : tap;
    const int64_t first = (rows_ ? tap % layer.kernel[1] * channels_ : 0) + group * depth();
    for (int64_t c = 0; c < depth(); ++c) {
      const int64_t element = first + c;
      const int16_t value = values[c * taps + tap];
      const int64_t place = (run * groups_ + element / elements()) * width * elements() + element % elements();
      std::memcpy(to + place * stored_size(), &value, static_cast<size_t>(stored_size()));  // little-endian
      sum += value;
    }
  }
  fold(layer, block, index, sum);
}

Reach Direct::reach(const int64_t output_size[2]) const {
  const int64_t run = rows_ ? layer_.kernel[1] * channels_ : channels_;
  return reach_of_taps(layer_, output_size, groups_ * elements() - run);
}

std::vector<int64_t> Direct::offsets(const Padded &x) const {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < layer_.kernel[0]; ++i) {
    for (int64_t j = 0; j < (rows_ ? 1 : layer_.kernel[1]); ++j) {
      result.push_back((i * layer_.dilations[0] * x.row + j * layer_.dilations[1] * x.column) * element_size());
    }
  }
  return result;
}

DirectWork Direct::describe(const Job &job, const std::vector<int64_t> &offsets) const {
  DirectWork work{};
  work.x = job.x.data;
  work.image = job.x.image * element_size();
  work.row = job.x.row * layer_.strides[0] * element_size();
  work.column = job.x.column * layer_.strides[1] * element_size();
  work.height = job.output_size[0];
  work.width = job.output_size[1];
  work.offsets = offsets.data();
  work.runs = runs_;
  work.groups = groups_;
  work.stretch = stretch_;
  work.bounded = bounded_ && !layer_.sums.wide;
  work.target = &job.target;
  work.y_stride = job.y_stride * size_of(job.target.dtype);
  work.addend = job.addend;
  work.added_stride = layer_.outputs * size_of(job.target.dtype);
  return work;
}

int32_t Direct::run_block(const Job &job, const Block &block, DirectWork work) const {
  work.x += block.first_channel * element_size();
  work.weights = weights_.data() + block.weights;
  if (widens()) {
    int16_t *widened = scratch_array<int16_t>(kWidenedSlot, values_of(block));
    KVANT_REQUIRE(widened != nullptr, KVANT_NO_MEMORY);
    loops().centre16(values_of(block), work.weights, KVANT_INT8, 1, 0, widened);
    work.weights = reinterpret_cast<const uint8_t *>(widened);
  }
  work.vectors = block.vectors;
  work.outputs = block.outputs;
  work.bias = bias_.data() + block.lanes;
  work.narrow_bias = narrow_bias_.data() + block.lanes;
  work.multipliers = multipliers_.data() + block.lanes;
  const int64_t first = block.first_output * size_of(job.target.dtype);
  work.y = job.y + first;
  if (job.addend != nullptr) work.added = static_cast<const uint8_t *>(job.addend->data) + first;
  const DirectLoops &loops = direct_loops();
  const auto function = layer_.sums.wide ? loops.wide : bytes_ ? loops.bytes : loops.shorts;
  function(work);
  return KVANT_OK;
}

// Pixels `first` and after as int16 with the zero point subtracted, side by side.
void centre(const Job &job, const kvant_conv_layer &layer, int64_t first, int64_t count, int16_t *out) {
  const int64_t height = job.output_size[0], width = job.output_size[1];
  const bool dense = job.x.column == layer.channels;
  for (int64_t p = first; p < first + count;) {
    const int64_t line = p / width, column = p % width;
    const int64_t pixels = dense ? std::min(width - column, first + count - p) : 1;
    const uint8_t *from = job.x.data + line / height * job.x.image + line % height * job.x.row + column * job.x.column;
    loops().centre16(pixels * layer.channels, from, KVANT_UINT8, 1, layer.zero_point, out);
    out += pixels * layer.channels;
    p += pixels;
  }
}

// Work on pixels that were centred: one row of them.
DirectWork of_centred(DirectWork work, const int16_t *centred, int64_t channels) {
  work.column = channels * static_cast<int64_t>(sizeof(int16_t));
  work.x = reinterpret_cast<const uint8_t *>(centred) - work.first * work.column;
  work.height = 1;
  work.width = INT64_MAX;
  return work;
}

// All outputs of a stretch of pixels, by the calling thread.
int32_t Direct::run_pixels(const Job &job, DirectWork work) const {
  if (converts()) {
    int16_t *centred = scratch_array<int16_t>(kCentredSlot, work.count * channels_ + kSlack);
    KVANT_REQUIRE(centred != nullptr, KVANT_NO_MEMORY);
    centre(job, layer_, work.first, work.count, centred);
    work = of_centred(work, centred, channels_);
  }
  for (const Block &block : blocks_) {
    const int32_t status = run_block(job, block, work);
    KVANT_REQUIRE(status == KVANT_OK, status);
  }
  return KVANT_OK;
}

// Pixels of a work item: enough to be worth it, few enough that every thread gets several items of `blocks` each. Where
// each item widens its weights, more pixels share them, and no item has only a few.
int64_t Direct::chunk_of(int64_t pixels, int64_t tile, int64_t vectors, int64_t blocks) const {
  const int64_t wanted = divide_up((widens() ? 1 : kItemsPerThread) * num_threads(), blocks);
  const int64_t most = round_up(divide_up(pixels, wanted), tile), products = products_of_vector() * vectors;
  const int64_t shared = divide_up(pixels, std::max<int64_t>(1, pixels / kWidenedPixels));
  return std::min(most, round_up(std::max(widens() ? shared : kChunkPixels, kItemProducts / products), tile));
}

// Each work item is a stretch of pixels for all outputs: whoever writes a pixel writes all of it, so that threads do not
// take cache lines from each other.
int32_t Direct::run_by_pixels(const Job &job, const DirectWork &whole) const {
  int64_t vectors = 0;
  for (const Block &block : blocks_) vectors += block.vectors;
  const int64_t pixels = whole.count, tile = direct_loops().pixels[blocks_.front().vectors - 1];
  const int64_t tiles = divide_up(pixels, tile), chunk = chunk_of(pixels, tile, vectors, 1) / tile;
  // As many for each thread, of as many tiles as possible.
  const int64_t items = std::min(tiles, round_up(divide_up(tiles, chunk), num_threads()));
  return parallel(items, 1, [&](int64_t begin, int64_t end) -> int32_t {
    int32_t worst = KVANT_OK;
    for (int64_t item = begin; item < end; ++item) {
      DirectWork work = whole;
      work.first = tiles * item / items * tile;
      work.count = std::min(tiles * (item + 1) / items * tile, pixels) - work.first;
      worst = std::max(worst, run_pixels(job, work));
    }
    return worst;
  });
}

// Weights that the cache cannot hold are kept for all pixels. A work item is a stretch of pixels for a few blocks, which
// fill whole cache lines.
int32_t Direct::run_by_blocks(const Job &job, const DirectWork &whole) const {
  const int64_t blocks = static_cast<int64_t>(blocks_.size()), pixels = whole.count;
  const int64_t width = blocks_.front().outputs * size_of(job.target.dtype);
  const int64_t side = merged_ == layer_.groups ? std::max<int64_t>(1, kLineBytes / width) : 1;
  const int64_t sides = divide_up(blocks, side), vectors = side * blocks_.front().vectors;
  const int64_t tile = direct_loops().pixels[blocks_.front().vectors - 1];
  const int64_t chunk = chunk_of(pixels, tile, vectors, sides), chunks = divide_up(pixels, chunk);
  return parallel(sides * chunks, 1, [&](int64_t begin, int64_t end) -> int32_t {
    for (int64_t item = begin; item < end; ++item) {
      DirectWork work = whole;
      work.first = item % chunks * chunk;
      work.count = std::min(chunk, pixels - work.first);
      const int64_t first = item / chunks * side, later = (item + 1 < end ? item + 1 : item + num_threads()) / chunks * side;
      const int64_t last = std::min(blocks, first + side) - 1;
      for (int64_t b = first; b <= last; ++b) {
        const int64_t next = b < last ? b + 1 : later;
        if (next != first && next < blocks) {
          const Block &following = blocks_[static_cast<size_t>(next)];
          work.next = weights_.data() + following.weights;
          work.next_bytes = stored_bytes(following);
        } else {
          work.next = nullptr;
        }
        const int32_t status = run_block(job, blocks_[static_cast<size_t>(b)], work);
        KVANT_REQUIRE(status == KVANT_OK, status);
      }
    }
    return KVANT_OK;
  });
}

int32_t Direct::run(const Job &job) const {
  const std::vector<int64_t> runs = offsets(job.x);
  DirectWork whole = describe(job, runs);
  whole.count = job.batch * job.output_size[0] * job.output_size[1];
  if (whole.count == 0) return KVANT_OK;
  if (weights_.bytes() <= kNearWeights) return run_by_pixels(job, whole);
  if (!converts()) return run_by_blocks(job, whole);
  int16_t *centred = scratch_array<int16_t>(kCentredSlot, whole.count * channels_ + kSlack);
  KVANT_REQUIRE(centred != nullptr, KVANT_NO_MEMORY);
  parallel(whole.count, divide_up(kCentredGrain, channels_), [&](int64_t begin, int64_t end) -> int32_t {
    centre(job, layer_, begin, end - begin, centred + begin * channels_);
    return KVANT_OK;
  });
  return run_by_blocks(job, of_centred(whole, centred, channels_));
}

int32_t Direct::run_lines(const Job &job, int64_t begin, int64_t end) const {
  const std::vector<int64_t> runs = offsets(job.x);
  DirectWork work = describe(job, runs);
  work.first = begin * job.output_size[1];
  work.count = (end - begin) * job.output_size[1];
  return run_pixels(job, work);
}

}  // namespace

std::unique_ptr<Algorithm> make_direct(const kvant_conv_layer &layer) {
  if (layer.transposed) return nullptr;
  return std::make_unique<Direct>(layer);
}

}  // namespace kvant
