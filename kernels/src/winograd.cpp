// Exact Winograd convolution F(4x4, 3x3) of uint8 by 16-bit integers.
//
// The transforms' matrices are scaled to integers, so that their products with input and weights are integers too: they
// fit 16 bits, always for the input, provably for the weights at hand. What follows is arithmetic modulo 2^32, whose
// result is 576 = 9 * 64 times the sum of input times weights: dividing by 9 is multiplying by its inverse modulo 2^32,
// and dividing by 64 is a shift, where the sum is below 2^25.
#include "winograd.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "packing.h"
#include "threads.h"
#include "winograd_weights.h"

namespace kvant {

#if defined(KVANT_HAVE_X86)
namespace avx2 {
extern const WinogradLoops kWinograd;
}
namespace avxvnni {
extern const WinogradLoops kWinograd;
}
namespace avx512vnni {
extern const WinogradLoops kWinograd;
}
#endif

namespace {

constexpr int64_t kSize = 4;                  // of a tile's output
constexpr int64_t kSeen = kSize + 2;          // of its input
constexpr int64_t kMostTiles = 48;            // of a block: its points and sums live in the second-level cache
constexpr int64_t kLeastChannels = 32;        // for fewer, the transforms cost more than they save
constexpr int64_t kLimit = int64_t{1} << 25;  // of the sums
constexpr int kPointsSlot = 0, kSumsSlot = 1, kPatchSlot = 2;  // of scratch memory

constexpr int kInput[6][6] = {{4, 0, -5, 0, 1, 0}, {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                              {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
constexpr int kShortInput[4][6] = {{4, 0, -4, 0, 0, 0}, {0, -3, -3, 0, 0, 0}, {0, 3, -3, 0, 0, 0}, {0, -4, 0, 4, 0, 0}};
constexpr int kMostKernel = 1 + 2 + 4;  // of a line of the kernel's transform, for weights of 1

// Most that a uint8 can be, either way, that is transformed by these lines down and across.
template <int kDown, int kAcross>
constexpr int largest_input(const int (&down)[kDown][6], const int (&across)[kAcross][6]) {
  int most = 0;
  for (const auto &rows : down) {
    for (const auto &columns : across) {
      int above = 0, below = 0;
      for (const int a : rows) {
        for (const int b : columns) (a * b > 0 ? above : below) += 255 * a * b;
      }
      most = above > most ? above : most;
      most = -below > most ? -below : most;
    }
  }
  return most;
}
// Transformed weights are within +-32767 by far, so that a pair of products is below 2^31 too, which vpmaddwd needs.
static_assert(128 * kMostKernel * kMostKernel <= 32767, "the kernel's transform fits 16 bits");
static_assert(largest_input(kInput, kInput) <= 32767 && largest_input(kInput, kShortInput) <= 32767 &&
                  largest_input(kShortInput, kShortInput) <= 32767,
              "the input's transform fits 16 bits");

const WinogradLoops *winograd_loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return &avx512vnni::kWinograd;
#if defined(KVANT_HAVE_AVXVNNI)
  if (isa() == Isa::kAvxVnni) return &avxvnni::kWinograd;
#endif
  if (isa() == Isa::kAvx2) return &avx2::kWinograd;
#endif
  return nullptr;
}

bool is_pair(const int64_t (&pair)[2], int64_t value) { return pair[0] == value && pair[1] == value; }

bool has_shape(const kvant_conv_layer &layer) {
  return winograd_loops() != nullptr && !layer.transposed && is_pair(layer.kernel, 3) && is_pair(layer.strides, 1) &&
         is_pair(layer.dilations, 1) && layer.groups == 1 && layer.dtype == KVANT_UINT8 && !layer.sums.wide &&
         layer.channels >= kLeastChannels && layer.outputs >= 1 && layer.channels < INT32_MAX &&
         layer.outputs < INT32_MAX;
}

// No input can make the sum of an output leave what the division of 576 times the sum modulo 2^32 recovers.
bool is_bounded(const kvant_conv_layer &layer) {
  const int64_t terms = layer.channels * 9;
  for (int64_t o = 0; o < layer.outputs; ++o) {
    int64_t above = 0, below = 0;
    for (const int16_t *w = layer.values + o * terms, *end = w + terms; w != end; ++w) (*w > 0 ? above : below) += *w;
    if (255 * std::max(above, -below) >= kLimit) return false;
  }
  return true;
}

// Tiles in order of image, row and column, cut into blocks, and outputs into groups of blocks: each part of the work is
// one block of tiles for one group.
struct Cut {
  int64_t blocks, groups;
};

class Winograd final : public Algorithm {
 public:
  Winograd(const kvant_conv_layer &layer, const WinogradLoops &loops, bool late);

  const char *name() const override { return late_ ? "winograd-late" : "winograd"; }
  int64_t bytes() const override { return weights_.bytes(); }
  Format format() const override { return Format::kRaw; }
  bool pads_itself() const override { return shape_.padded_channels == shape_.channels; }
  bool adds_itself() const override { return true; }
  Reach reach(const int64_t output_size[2]) const override {
    return {round_up(output_size[0], kSize) + 2, round_up(output_size[1], kSize) + 2,
            shape_.padded_channels - shape_.channels};
  }
  int32_t run(const Job &job) const override;

 private:
  struct Run {
    const Winograd *self;
    const Job *job;
    int64_t down, across, tiles;  // down and across one image
    Cut cut;
    const int16_t *weights;
  };

  Cut cut(int64_t tiles) const;
  void transform(const Run &run, const WinogradTile &tile, uint8_t *patch, int16_t *points, int64_t plane) const;
  int32_t run_parts(const Run &run, int64_t begin, int64_t end) const;
  WinogradTile locate(const Run &run, int64_t number) const;
  WinogradTiles locate_all(const Run &run, int64_t first, int64_t count, WinogradTile *tiles) const;
  void run_block(const Run &run, int64_t block, WinogradTile *tiles, const WinogradTiles &counts, const int16_t *points,
                 int32_t *sums) const;

  const WinogradLoops &loops_;
  WinogradShape shape_;
  int32_t zero_point_;
  bool late_;
  bool bounded_ = true;  // no product of an int32 and a multiplier reaches 2^31
  WinogradWeights weights_;
  std::vector<int32_t> bias_;
  std::vector<float> multipliers_;
};

Winograd::Winograd(const kvant_conv_layer &layer, const WinogradLoops &loops, bool late)
    : loops_(loops),
      shape_(layer),
      zero_point_(layer.zero_point),
      late_(late),
      weights_(layer, loops, late),
      bias_(shape_.padded_outputs),
      multipliers_(shape_.padded_outputs) {
  const int64_t terms = layer.channels * 9;
  for (int64_t o = 0; o < layer.outputs; ++o) {
    int64_t total = 0;
    for (int64_t i = 0; i < terms; ++i) total += layer.values[o * terms + i];
    // Modulo 2^32: the whole sum fits.
    const uint64_t share = static_cast<uint64_t>(layer.zero_point * total);
    bias_[o] = static_cast<int32_t>(static_cast<uint64_t>(layer.bias[o]) - share);
    multipliers_[o] = layer.multipliers[o];
    bounded_ = bounded_ && keeps_int32(multipliers_[o]);
  }
}

// The cheapest by an estimate of cycles: transforms of tiles, products, and weights that come from memory.
Cut Winograd::cut(int64_t tiles) const {
  const int64_t threads = num_threads(), least = divide_up(tiles, kMostTiles);
  const int64_t groups = shape_.padded_channels / kWinogradChannels;
  const int64_t transform = 200 * groups, products = 2600 * groups, weights = kWinogradPoints * 512 * groups;
  Cut best{least, 1};
  int64_t best_cost = INT64_MAX;
  for (int64_t cuts = 1; cuts <= std::min(threads, shape_.blocks()); ++cuts) {
    for (const int64_t parts : {least, std::min(tiles, round_up(least * cuts, threads) / cuts)}) {
      const int64_t each = divide_up(shape_.blocks(), cuts), size = divide_up(tiles, parts);
      const int64_t cost = divide_up(parts * cuts, threads) * (size * (transform + each * products) + each * weights);
      if (cost >= best_cost) continue;
      best = {parts, cuts};
      best_cost = cost;
    }
  }
  return best;
}

int32_t Winograd::run(const Job &job) const {
  const int64_t down = divide_up(job.output_size[0], kSize), across = divide_up(job.output_size[1], kSize);
  int64_t tiles;
  KVANT_REQUIRE(product({job.batch, down, across}, &tiles), KVANT_OVERFLOW);
  if (tiles == 0) return KVANT_OK;
  int16_t *room = call_array<int16_t>(weights_.room());
  KVANT_REQUIRE(room != nullptr, KVANT_NO_MEMORY);
  const Run run{this, &job, down, across, tiles, cut(tiles), weights_.at_points(room)};
  return parallel(run.cut.blocks * run.cut.groups, 1,
                  [&run](int64_t begin, int64_t end) { return run.self->run_parts(run, begin, end); });
}

int32_t Winograd::run_parts(const Run &run, int64_t begin, int64_t end) const {
  const int64_t room = divide_up(run.tiles, run.cut.blocks);
  const int64_t points_plane = room * shape_.padded_channels + kWinogradPadding;
  int16_t *points = scratch_array<int16_t>(kPointsSlot, kWinogradPoints * points_plane);
  int32_t *sums = scratch_array<int32_t>(kSumsSlot, kWinogradPoints * (room * kWinogradBlock + kWinogradPadding));
  uint8_t *patch = scratch_array<uint8_t>(kPatchSlot, kSeen * kSeen * shape_.padded_channels);
  KVANT_REQUIRE(points != nullptr && sums != nullptr && patch != nullptr, KVANT_NO_MEMORY);
  WinogradTile tiles[kMostTiles];
  WinogradTiles counts{};
  for (int64_t part = begin, current = -1; part < end; ++part) {
    const int64_t block = part / run.cut.groups, group = part % run.cut.groups;
    if (block != current) {
      const int64_t first = run.tiles * block / run.cut.blocks;
      const int64_t count = run.tiles * (block + 1) / run.cut.blocks - first;
      counts = locate_all(run, first, count, tiles);
      for (int64_t t = 0; t < count; ++t) transform(run, tiles[t], patch, points + t * shape_.padded_channels, points_plane);
      current = block;
    }
    for (int64_t b = shape_.blocks() * group / run.cut.groups; b < shape_.blocks() * (group + 1) / run.cut.groups; ++b) {
      run_block(run, b, tiles, counts, points, sums);
    }
  }
  return KVANT_OK;
}

// What a tile sees, the zero point where there is no input.
void fill_patch(const Job &job, const WinogradTile &tile, int64_t channels, int32_t zero_point, uint8_t *patch) {
  const int64_t first = std::clamp<int64_t>(-tile.left, 0, kSeen);
  const int64_t last = std::clamp<int64_t>(job.size[1] - tile.left, first, kSeen);
  for (int64_t i = 0; i < kSeen; ++i, patch += kSeen * channels) {
    const int64_t row = tile.top + i;
    const bool inside = row >= 0 && row < job.size[0];
    const int64_t begin = inside ? first : kSeen, end = inside ? last : kSeen;
    std::memset(patch, zero_point, static_cast<size_t>(begin * channels));
    for (int64_t j = begin; j < end; ++j) {
      const uint8_t *x = tile.image + row * job.x.row + (tile.left + j) * job.x.column;
      std::memcpy(patch + j * channels, x, static_cast<size_t>(channels));
    }
    std::memset(patch + end * channels, zero_point, static_cast<size_t>((kSeen - end) * channels));
  }
}

void Winograd::transform(const Run &run, const WinogradTile &tile, uint8_t *patch, int16_t *points, int64_t plane) const {
  const Job &job = *run.job;
  const bool inside = tile.top >= 0 && tile.left >= 0 && tile.top + kSeen <= job.size[0] && tile.left + kSeen <= job.size[1];
  if (inside) {
    const uint8_t *x = tile.image + tile.top * job.x.row + tile.left * job.x.column;
    return loops_.transform(tile, x, job.x.row, job.x.column, shape_.padded_channels, points, plane);
  }
  fill_patch(job, tile, shape_.padded_channels, zero_point_, patch);
  loops_.transform(tile, patch, kSeen * shape_.padded_channels, shape_.padded_channels, shape_.padded_channels, points, plane);
}

WinogradTile Winograd::locate(const Run &run, int64_t number) const {
  const Job &job = *run.job;
  const int64_t height = job.output_size[0], width = job.output_size[1];
  const int64_t image = number / (run.down * run.across), within = number % (run.down * run.across);
  const int64_t row = within / run.across * kSize, column = within % run.across * kSize;
  const int64_t pixel = (image * height + row) * width + column, size = size_of(job.target.dtype);
  const uint8_t *added = job.addend == nullptr ? nullptr : static_cast<const uint8_t *>(job.addend->data);
  if (added != nullptr) added += pixel * shape_.outputs * size;
  return {job.x.data + image * job.x.image, row - job.pads[0], column - job.pads[1], job.y + pixel * job.y_stride * size,
          added, std::min(kSize, height - row), std::min(kSize, width - column)};
}

int64_t *count_of(const WinogradTile &tile, WinogradTiles *counts) {
  const bool low = tile.rows <= kSize / 2, narrow = tile.columns <= kSize / 2;
  return low ? (narrow ? &counts->both : &counts->low) : narrow ? &counts->narrow : &counts->full;
}

// Tiles in the order that WinogradTiles describes.
WinogradTiles Winograd::locate_all(const Run &run, int64_t first, int64_t count, WinogradTile *tiles) const {
  WinogradTile found[kMostTiles];
  WinogradTiles counts{};
  for (int64_t t = 0; t < count; ++t) {
    found[t] = locate(run, first + t);
    ++*count_of(found[t], &counts);
  }
  WinogradTiles next{0, counts.low, counts.low + counts.full, counts.low + counts.full + counts.narrow};
  for (int64_t t = 0; t < count; ++t) tiles[(*count_of(found[t], &next))++] = found[t];
  return counts;
}

void shift(WinogradTile *tiles, const WinogradTiles &counts, int64_t bytes) {
  const int64_t count = counts.low + counts.full + counts.narrow + counts.both;
  for (int64_t t = 0; t < count; ++t) {
    tiles[t].y += bytes;
    if (tiles[t].added != nullptr) tiles[t].added += bytes;
  }
}

void Winograd::run_block(const Run &run, int64_t block, WinogradTile *tiles, const WinogradTiles &counts,
                         const int16_t *points, int32_t *sums) const {
  const Job &job = *run.job;
  const int64_t room = divide_up(run.tiles, run.cut.blocks), first = block * kWinogradBlock;
  const int64_t sums_plane = room * kWinogradBlock + kWinogradPadding;
  const int64_t size = size_of(job.target.dtype), pixel = job.y_stride * size;
  loops_.multiply({counts, shape_.padded_channels, shape_.width(block), points, room * shape_.padded_channels + kWinogradPadding,
                   run.weights + shape_.begin(block), shape_.plane(block),
                   run.weights + shape_.begin((block + 1) % shape_.blocks()), sums, sums_plane});
  const int64_t added = shape_.outputs * size;
  shift(tiles, counts, first * size);
  loops_.finish({sums, sums_plane, bias_.data() + first, multipliers_.data() + first,
                 std::min(kWinogradBlock, shape_.outputs - first), job.target, job.output_size[1] * pixel, pixel,
                 job.addend, job.output_size[1] * added, added, bounded_ && is_small(job.addend)},
                tiles, counts);
  shift(tiles, counts, -first * size);
}

}  // namespace

int64_t winograd_bytes(const kvant_conv_layer &layer, bool late) {
  if (!has_shape(layer)) return 0;
  const WinogradShape shape(layer);
  return late ? shape.kernels_size() : 2 * shape.all_points();
}

std::unique_ptr<Algorithm> make_winograd(const kvant_conv_layer &layer, bool late) {
  const int64_t count = layer.outputs * layer.channels * 9;
  if (!has_shape(layer) || !fits_int8(layer.values, count) || !is_bounded(layer)) return nullptr;
  return std::make_unique<Winograd>(layer, *winograd_loops(), late);
}

}  // namespace kvant
