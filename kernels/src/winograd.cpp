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
#include <iterator>
#include <memory>
#include <new>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "packing.h"
#include "threads.h"

namespace kvant {

#if defined(KVANT_HAVE_X86)
namespace avx2 {
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
constexpr int64_t kPlanePadding = 32;         // elements, against planes that fall into the same cache sets
constexpr int64_t kStagedPlane = kWinogradBlock * kWinogradChannels + kPlanePadding;
constexpr int kPointsSlot = 0, kSumsSlot = 1, kPatchSlot = 2;  // of scratch memory

constexpr int kInput[6][6] = {{4, 0, -5, 0, 1, 0}, {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                              {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
constexpr int kShortInput[4][6] = {{4, 0, -4, 0, 0, 0}, {0, -3, -3, 0, 0, 0}, {0, 3, -3, 0, 0, 0}, {0, -4, 0, 4, 0, 0}};
constexpr int kKernel[6][3] = {{3, 0, 0}, {1, 1, 1}, {1, -1, 1}, {1, 2, 4}, {1, -2, 4}, {0, 0, 3}};

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
// With weights within +-32767, a pair of products is then below 2^31 too, which vpmaddwd needs.
static_assert(largest_input(kInput, kInput) <= 32767 && largest_input(kInput, kShortInput) <= 32767 &&
                  largest_input(kShortInput, kShortInput) <= 32767,
              "the input's transform fits 16 bits");

const WinogradLoops *winograd_loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return &avx512vnni::kWinograd;
  if (isa() >= Isa::kAvx2) return &avx2::kWinograd;
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

struct Transformed {
  int32_t values[kWinogradPoints];
};

Transformed transform_weights(const int16_t *weights) {
  int32_t half[6][3];
  for (int i = 0; i < 6; ++i) {
    for (int x = 0; x < 3; ++x) {
      half[i][x] = kKernel[i][0] * weights[x] + kKernel[i][1] * weights[3 + x] + kKernel[i][2] * weights[6 + x];
    }
  }
  Transformed result;
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 6; ++j) {
      result.values[i * 6 + j] = kKernel[j][0] * half[i][0] + kKernel[j][1] * half[i][1] + kKernel[j][2] * half[i][2];
    }
  }
  return result;
}

bool fits(const Transformed &weights) {
  return std::all_of(std::begin(weights.values), std::end(weights.values),
                     [](int32_t w) { return w >= -32767 && w <= 32767; });
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

// Memory for packed weights.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) {
    data_ = static_cast<int16_t *>(allocate(bytes));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { std::free(data_); }

  int16_t *data() const { return data_; }

 private:
  int16_t *data_;
};

// Tiles in order of image, row and column, cut into blocks, and outputs into groups of blocks: each part of the work is
// one block of tiles for one group.
struct Cut {
  int64_t blocks, groups;
};

class Winograd final : public Algorithm {
 public:
  Winograd(const kvant_conv_layer &layer, const WinogradLoops &loops);

  bool pack(const kvant_conv_layer &layer);  // false if a transformed weight does not fit

  const char *name() const override { return "winograd"; }
  int64_t bytes() const override { return bytes_; }
  Format format() const override { return Format::kRaw; }
  bool pads_itself() const override { return channels_ == real_channels_; }
  bool adds_itself() const override { return true; }
  Reach reach(const int64_t output_size[2]) const override {
    return {round_up(output_size[0], kSize) + 2, round_up(output_size[1], kSize) + 2, channels_ - real_channels_};
  }
  int32_t run(const Job &job) const override;

 private:
  struct Run {
    const Winograd *self;
    const Job *job;
    int64_t down, across, tiles;  // down and across one image
    Cut cut;
  };

  int64_t blocks() const { return divide_up(outputs_, kWinogradBlock); }
  int64_t block_width(int64_t block) const { return std::min(kWinogradBlock, outputs_ - block * kWinogradBlock); }
  const int16_t *block_weights(int64_t block) const {
    return weights_.data() + block * kWinogradBlock * kWinogradPoints * channels_;
  }
  bool stage(const kvant_conv_layer &layer, int64_t output, int64_t channel, int16_t *staged) const;
  void unstage(const int16_t *staged, int64_t block, int64_t channel);
  Cut cut(int64_t tiles) const;
  void transform(const Run &run, const WinogradTile &tile, uint8_t *patch, int16_t *points, int64_t plane) const;
  int32_t run_parts(const Run &run, int64_t begin, int64_t end) const;
  WinogradTile locate(const Run &run, int64_t number) const;
  WinogradTiles locate_all(const Run &run, int64_t first, int64_t count, WinogradTile *tiles) const;
  void run_block(const Run &run, int64_t block, WinogradTile *tiles, const WinogradTiles &counts, const int16_t *points,
                 int32_t *sums) const;

  const WinogradLoops &loops_;
  int32_t zero_point_;
  int64_t real_outputs_, real_channels_;
  int64_t outputs_, channels_;  // padded
  int64_t bytes_;
  bool bounded_ = true;  // no product of an int32 and a multiplier reaches 2^31
  Buffer weights_;
  std::vector<int32_t> bias_;
  std::vector<float> multipliers_;
};

Winograd::Winograd(const kvant_conv_layer &layer, const WinogradLoops &loops)
    : loops_(loops),
      zero_point_(layer.zero_point),
      real_outputs_(layer.outputs),
      real_channels_(layer.channels),
      outputs_(round_up(layer.outputs, kWinogradStep)),
      channels_(round_up(layer.channels, kWinogradChannels)),
      bytes_(winograd_bytes(layer)),
      weights_(bytes_),
      bias_(outputs_),
      multipliers_(outputs_) {
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

// [block][point][panel][pair of channels][output][2], a block of outputs and channels at a time: points lie a power of
// two apart, so weights go to another place first, where they do not push each other out of the cache.
bool Winograd::pack(const kvant_conv_layer &layer) {
  std::vector<int16_t> staged(kWinogradPoints * kStagedPlane);
  for (int64_t block = 0; block < blocks(); ++block) {
    for (int64_t c = 0; c < channels_; c += kWinogradChannels) {
      if (!stage(layer, block * kWinogradBlock, c, staged.data())) return false;
      unstage(staged.data(), block, c);
    }
  }
  return true;
}

// staged[point][panel][pair of channels][output][2]
bool Winograd::stage(const kvant_conv_layer &layer, int64_t output, int64_t channel, int16_t *staged) const {
  const int64_t width = block_width(output / kWinogradBlock);
  std::fill_n(staged, kWinogradPoints * kStagedPlane, int16_t{0});
  for (int64_t o = 0; o < std::min(kWinogradBlock, real_outputs_ - output); ++o) {
    const int64_t first = o / loops_.panel * loops_.panel, panel = std::min(loops_.panel, width - first);
    for (int64_t c = 0; c < std::min(kWinogradChannels, real_channels_ - channel); ++c) {
      const Transformed weights = transform_weights(layer.values + ((output + o) * real_channels_ + channel + c) * 9);
      if (!fits(weights)) return false;
      int16_t *to = staged + first * kWinogradChannels + (c / 2 * panel + o - first) * 2 + c % 2;
      for (int64_t p = 0; p < kWinogradPoints; ++p) to[p * kStagedPlane] = static_cast<int16_t>(weights.values[p]);
    }
  }
  return true;
}

void Winograd::unstage(const int16_t *staged, int64_t block, int64_t channel) {
  const int64_t width = block_width(block);
  for (int64_t p = 0; p < kWinogradPoints; ++p) {
    int16_t *to = weights_.data() + (block * kWinogradBlock * kWinogradPoints + p * width) * channels_;
    for (int64_t first = 0; first < width; first += loops_.panel) {
      const int64_t panel = std::min(loops_.panel, width - first);
      std::copy_n(staged + p * kStagedPlane + first * kWinogradChannels, panel * kWinogradChannels,
                  to + first * channels_ + channel * panel);
    }
  }
}

// The cheapest by an estimate of cycles: transforms of tiles, products, and weights that come from memory.
Cut Winograd::cut(int64_t tiles) const {
  const int64_t threads = num_threads(), least = divide_up(tiles, kMostTiles);
  const int64_t groups = channels_ / kWinogradChannels;
  const int64_t transform = 200 * groups, products = 2600 * groups, weights = kWinogradPoints * 512 * groups;
  Cut best{least, 1};
  int64_t best_cost = INT64_MAX;
  for (int64_t cuts = 1; cuts <= std::min(threads, blocks()); ++cuts) {
    for (const int64_t parts : {least, std::min(tiles, round_up(least * cuts, threads) / cuts)}) {
      const int64_t each = divide_up(blocks(), cuts), size = divide_up(tiles, parts);
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
  const Run run{this, &job, down, across, tiles, cut(tiles)};
  return parallel(run.cut.blocks * run.cut.groups, 1,
                  [&run](int64_t begin, int64_t end) { return run.self->run_parts(run, begin, end); });
}

int32_t Winograd::run_parts(const Run &run, int64_t begin, int64_t end) const {
  const int64_t room = divide_up(run.tiles, run.cut.blocks);
  const int64_t points_plane = room * channels_ + kPlanePadding;
  int16_t *points = scratch_array<int16_t>(kPointsSlot, kWinogradPoints * points_plane);
  int32_t *sums = scratch_array<int32_t>(kSumsSlot, kWinogradPoints * (room * kWinogradBlock + kPlanePadding));
  uint8_t *patch = scratch_array<uint8_t>(kPatchSlot, kSeen * kSeen * channels_);
  KVANT_REQUIRE(points != nullptr && sums != nullptr && patch != nullptr, KVANT_NO_MEMORY);
  WinogradTile tiles[kMostTiles];
  WinogradTiles counts{};
  for (int64_t part = begin, current = -1; part < end; ++part) {
    const int64_t block = part / run.cut.groups, group = part % run.cut.groups;
    if (block != current) {
      const int64_t first = run.tiles * block / run.cut.blocks;
      const int64_t count = run.tiles * (block + 1) / run.cut.blocks - first;
      counts = locate_all(run, first, count, tiles);
      for (int64_t t = 0; t < count; ++t) transform(run, tiles[t], patch, points + t * channels_, points_plane);
      current = block;
    }
    for (int64_t b = blocks() * group / run.cut.groups; b < blocks() * (group + 1) / run.cut.groups; ++b) {
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
    return loops_.transform(tile, x, job.x.row, job.x.column, channels_, points, plane);
  }
  fill_patch(job, tile, channels_, zero_point_, patch);
  loops_.transform(tile, patch, kSeen * channels_, channels_, channels_, points, plane);
}

WinogradTile Winograd::locate(const Run &run, int64_t number) const {
  const Job &job = *run.job;
  const int64_t height = job.output_size[0], width = job.output_size[1];
  const int64_t image = number / (run.down * run.across), within = number % (run.down * run.across);
  const int64_t row = within / run.across * kSize, column = within % run.across * kSize;
  const int64_t pixel = (image * height + row) * width + column, size = size_of(job.target.dtype);
  const uint8_t *added = job.addend == nullptr ? nullptr : static_cast<const uint8_t *>(job.addend->data);
  if (added != nullptr) added += pixel * real_outputs_ * size;
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

// The sum of two 16-bit integers times their multipliers stays far below 2^31.
bool is_small(const kvant_addend *addend) {
  return addend == nullptr || std::max(std::abs(addend->multiplier), std::abs(addend->added_multiplier)) < 8192.0f;
}

void Winograd::run_block(const Run &run, int64_t block, WinogradTile *tiles, const WinogradTiles &counts,
                         const int16_t *points, int32_t *sums) const {
  const Job &job = *run.job;
  const int64_t room = divide_up(run.tiles, run.cut.blocks), first = block * kWinogradBlock;
  const int64_t sums_plane = room * kWinogradBlock + kPlanePadding;
  const int64_t size = size_of(job.target.dtype), pixel = job.y_stride * size;
  loops_.multiply({counts, channels_, block_width(block), points, room * channels_ + kPlanePadding,
                   block_weights(block), block_weights((block + 1) % blocks()), sums, sums_plane});
  const int64_t added = real_outputs_ * size;
  shift(tiles, counts, first * size);
  loops_.finish({sums, sums_plane, bias_.data() + first, multipliers_.data() + first,
                 std::min(kWinogradBlock, real_outputs_ - first), job.target, job.output_size[1] * pixel, pixel,
                 job.addend, job.output_size[1] * added, added, bounded_ && is_small(job.addend)},
                tiles, counts);
  shift(tiles, counts, -first * size);
}

}  // namespace

int64_t winograd_bytes(const kvant_conv_layer &layer) {
  int64_t bytes;
  if (!has_shape(layer)) return 0;
  const int64_t channels = round_up(layer.channels, kWinogradChannels);
  const int64_t outputs = round_up(layer.outputs, kWinogradStep);
  return product({kWinogradPoints, 2, channels, outputs}, &bytes) ? bytes : 0;
}

std::unique_ptr<Algorithm> make_winograd(const kvant_conv_layer &layer) {
  if (winograd_bytes(layer) == 0 || !is_bounded(layer)) return nullptr;
  auto winograd = std::make_unique<Winograd>(layer, *winograd_loops());
  if (!winograd->pack(layer)) return nullptr;
  return winograd;
}

}  // namespace kvant
