// Direct convolution: work in blocks of outputs times stretches of pixels.
#include "direct.h"

#include <algorithm>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "direct_weights.h"
#include "loops.h"
#include "packing.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kChunkPixels = 96;
constexpr int64_t kWidenedPixels = 4096;  // or more share weights which were widened for them
constexpr int64_t kItemProducts = int64_t{1} << 23;  // of one work item, or more: handing it out should cost nothing
constexpr int64_t kNearWeights = int64_t{1} << 18;   // bytes that stay in the second-level cache beside pixels
constexpr int64_t kItemsPerThread = 2;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kSlack = 64;               // elements behind centred pixels
constexpr int64_t kCentredGrain = 1 << 15;   // elements; fewer are not worth a second thread
constexpr int kCentredSlot = 3, kWidenedSlot = 4;  // of scratch memory

bool is_one(const int64_t (&pair)[2]) { return pair[0] == 1 && pair[1] == 1; }

class Direct : public Algorithm {
 public:
  explicit Direct(const kvant_conv_layer &layer) : layer_(without_pointers(layer)), packed_(layer) {}

  const char *name() const override { return "direct"; }
  int64_t bytes() const override { return packed_.size(); }
  Format format() const override { return reads_raw() || converts() ? Format::kRaw : Format::kCentred16; }
  Reach reach(const int64_t output_size[2]) const override;
  int32_t run(const Job &job) const override;
  bool adds_itself() const override { return true; }
  bool runs_lines() const override { return true; }
  int32_t run_lines(const Job &job, int64_t begin, int64_t end) const override;

 private:
  int64_t element_size() const { return kGroupBytes / packed_.elements(); }
  // Whether each work item widens the weights that it needs: kept as int16 they would take twice the memory.
  bool widens() const { return packed_.stores_bytes && !packed_.bytes; }
  bool reads_raw() const { return packed_.bytes || layer_.dtype == KVANT_INT16; }
  // Whether it centres the pixels of each work item itself, rather than those of the whole input before.
  bool converts() const {
    return !reads_raw() && packed_.merged == layer_.groups && packed_.runs == 1 && is_one(layer_.kernel) &&
           is_one(layer_.strides);
  }
  int64_t chunk_of(int64_t pixels, int64_t tile, int64_t vectors, int64_t blocks, int64_t threads) const;
  std::vector<int64_t> offsets(const Padded &x) const;
  DirectWork describe(const Job &job, const std::vector<int64_t> &offsets) const;
  int32_t run_block(const Job &job, const DirectBlock &block, const uint8_t *x, DirectWork *work) const;
  int32_t run_pixels(const Job &job, DirectWork *work) const;
  int32_t run_by_pixels(const Job &job, const DirectWork &whole) const;
  int32_t run_by_blocks(const Job &job, const DirectWork &whole) const;

  kvant_conv_layer layer_;  // pointers are null
  DirectWeights packed_;
};

Reach Direct::reach(const int64_t output_size[2]) const {
  const int64_t run = packed_.rows ? layer_.kernel[1] * packed_.channels : packed_.channels;
  return reach_of_taps(layer_, output_size, packed_.groups * packed_.elements() - run);
}

std::vector<int64_t> Direct::offsets(const Padded &x) const {
  std::vector<int64_t> result;
  result.reserve(static_cast<size_t>(packed_.runs));
  for (int64_t i = 0; i < layer_.kernel[0]; ++i) {
    for (int64_t j = 0; j < (packed_.rows ? 1 : layer_.kernel[1]); ++j) {
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
  work.runs = packed_.runs;
  work.groups = packed_.groups;
  work.stretch = packed_.stretch;
  work.bounded = packed_.bounded && !layer_.sums.wide;
  work.target = &job.target;
  work.y_stride = job.y_stride * size_of(job.target.dtype);
  work.addend = job.addend;
  work.bounded_sums = is_small(job.addend);
  work.added_stride = job.addend == nullptr ? 0 : layer_.outputs * size_of(job.target.dtype);
  return work;
}

// x is what the pixels see first of all channels.
int32_t Direct::run_block(const Job &job, const DirectBlock &block, const uint8_t *x, DirectWork *work) const {
  work->x = x + block.first_channel * element_size();
  work->weights = packed_.weights.data() + block.weights;
  if (widens()) {
    int16_t *widened = scratch_array<int16_t>(kWidenedSlot, packed_.values_of(block));
    KVANT_REQUIRE(widened != nullptr, KVANT_NO_MEMORY);
    loops().centre16(packed_.values_of(block), work->weights, KVANT_INT8, 1, 0, widened);
    work->weights = reinterpret_cast<const uint8_t *>(widened);
  }
  work->vectors = block.vectors;
  work->outputs = block.outputs;
  work->bias = packed_.bias.data() + block.lanes;
  work->narrow_bias = packed_.narrow_bias.data() + block.lanes;
  work->multipliers = packed_.multipliers.data() + block.lanes;
  const int64_t first = block.first_output * size_of(job.target.dtype);
  work->y = job.y + first;
  if (job.addend != nullptr) work->added = static_cast<const uint8_t *>(job.addend->data) + first;
  const DirectLoops &loops = direct_loops();
  const auto function = layer_.sums.wide ? loops.wide : packed_.bytes ? loops.bytes : loops.shorts;
  function(*work);
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
int32_t Direct::run_pixels(const Job &job, DirectWork *work) const {
  if (converts()) {
    int16_t *centred = scratch_array<int16_t>(kCentredSlot, work->count * packed_.channels + kSlack);
    KVANT_REQUIRE(centred != nullptr, KVANT_NO_MEMORY);
    centre(job, layer_, work->first, work->count, centred);
    *work = of_centred(*work, centred, packed_.channels);
  }
  const uint8_t *x = work->x;
  for (const DirectBlock &block : packed_.blocks) {
    const int32_t status = run_block(job, block, x, work);
    KVANT_REQUIRE(status == KVANT_OK, status);
  }
  return KVANT_OK;
}

// Pixels of a work item: enough to be worth it, few enough that every thread gets several items of `blocks` each. Where
// each item widens its weights, more pixels share them, and no item has only a few.
int64_t Direct::chunk_of(int64_t pixels, int64_t tile, int64_t vectors, int64_t blocks, int64_t threads) const {
  const int64_t wanted = divide_up((widens() ? 1 : kItemsPerThread) * threads, blocks);
  const int64_t most = round_up(divide_up(pixels, wanted), tile), products = packed_.products_of_vector() * vectors;
  const int64_t shared = divide_up(pixels, std::max<int64_t>(1, pixels / kWidenedPixels));
  return std::min(most, round_up(std::max(widens() ? shared : kChunkPixels, kItemProducts / products), tile));
}

// Each work item is a stretch of pixels for all outputs: whoever writes a pixel writes all of it, so that threads do not
// take cache lines from each other.
int32_t Direct::run_by_pixels(const Job &job, const DirectWork &whole) const {
  int64_t vectors = 0;
  for (const DirectBlock &block : packed_.blocks) vectors += block.vectors;
  const int64_t pixels = whole.count, tile = direct_loops().pixels[packed_.blocks.front().vectors - 1];
  const int64_t threads = num_threads(), tiles = divide_up(pixels, tile), chunk = chunk_of(pixels, tile, vectors, 1, threads) / tile;
  // As many for each thread, of as many tiles as possible.
  const int64_t items = std::min(tiles, round_up(divide_up(tiles, chunk), threads));
  return parallel(items, 1, [&](int64_t begin, int64_t end) -> int32_t {
    int32_t worst = KVANT_OK;
    for (int64_t item = begin; item < end; ++item) {
      DirectWork work = whole;
      work.first = tiles * item / items * tile;
      work.count = std::min(tiles * (item + 1) / items * tile, pixels) - work.first;
      worst = std::max(worst, run_pixels(job, &work));
    }
    return worst;
  });
}

// Weights that the cache cannot hold are kept for all pixels. A work item is a stretch of pixels for a few blocks, which
// fill whole cache lines.
int32_t Direct::run_by_blocks(const Job &job, const DirectWork &whole) const {
  const int64_t blocks = static_cast<int64_t>(packed_.blocks.size()), pixels = whole.count;
  const int64_t width = packed_.blocks.front().outputs * size_of(job.target.dtype);
  const int64_t side = packed_.merged == layer_.groups ? std::max<int64_t>(1, kLineBytes / width) : 1;
  const int64_t sides = divide_up(blocks, side), vectors = side * packed_.blocks.front().vectors;
  const int64_t tile = direct_loops().pixels[packed_.blocks.front().vectors - 1];
  const int64_t chunk = chunk_of(pixels, tile, vectors, sides, num_threads()), chunks = divide_up(pixels, chunk);
  return parallel(sides * chunks, 1, [&](int64_t begin, int64_t end) -> int32_t {
    for (int64_t item = begin; item < end; ++item) {
      DirectWork work = whole;
      work.first = item % chunks * chunk;
      work.count = std::min(chunk, pixels - work.first);
      const int64_t first = item / chunks * side, later = (item + 1) / chunks * side;
      const int64_t last = std::min(blocks, first + side) - 1;
      for (int64_t b = first; b <= last; ++b) {
        const int64_t next = b < last ? b + 1 : later;
        if (next != first && next < blocks) {
          const DirectBlock &following = packed_.blocks[static_cast<size_t>(next)];
          work.next = packed_.weights.data() + following.weights;
          work.next_bytes = packed_.stored_bytes(following);
        } else {
          work.next = nullptr;
        }
        const int32_t status = run_block(job, packed_.blocks[static_cast<size_t>(b)], whole.x, &work);
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
  if (packed_.weights.bytes() <= kNearWeights) return run_by_pixels(job, whole);
  if (!converts()) return run_by_blocks(job, whole);
  int16_t *centred = scratch_array<int16_t>(kCentredSlot, whole.count * packed_.channels + kSlack);
  KVANT_REQUIRE(centred != nullptr, KVANT_NO_MEMORY);
  parallel(whole.count, divide_up(kCentredGrain, packed_.channels), [&](int64_t begin, int64_t end) -> int32_t {
    centre(job, layer_, begin, end - begin, centred + begin * packed_.channels);
    return KVANT_OK;
  });
  return run_by_blocks(job, of_centred(whole, centred, packed_.channels));
}

int32_t Direct::run_lines(const Job &job, int64_t begin, int64_t end) const {
  const std::vector<int64_t> runs = offsets(job.x);
  DirectWork work = describe(job, runs);
  work.first = begin * job.output_size[1];
  work.count = (end - begin) * job.output_size[1];
  return run_pixels(job, &work);
}

}  // namespace

std::unique_ptr<Algorithm> make_direct(const kvant_conv_layer &layer) {
  if (layer.transposed) return nullptr;
  return std::make_unique<Direct>(layer);
}

}  // namespace kvant
