// Convolution with large kernels by a number-theoretic transform: exact, with a fifth of the multiplications.
//
// A tile of 16 x 16 pixels gives (17 - K) x (17 - K) results. Its channels are transformed modulo each of two primes
// that have roots of unity of order 16; at each of the 2 x 256 points, sums over channels are a matrix product; the
// inverse transforms give every result modulo both primes, thus modulo their product P. The sums of an output lie
// between low = 255 * (sum of its negative weights) and high = 255 * (sum of its positive ones): where high - low < P
// that is enough to know them. The zero point is folded into the bias, so that pixels are 0..255 as they come.
//
// transform_fields.h proves that 16-bit lanes never overflow, `sums_fit` that sums over channels do not.
#include "transform.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "threads.h"
#include "transform_fields.h"

namespace kvant {

#if defined(KVANT_HAVE_X86)
namespace avx2 {
extern const transform::Transforms kTransforms;
}
namespace avx512vnni {
extern const transform::Transforms kTransforms;
}
#endif

namespace transform {
namespace {

// Null where there are none for this machine.
const Transforms *transforms() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return &avx512vnni::kTransforms;
  if (isa() >= Isa::kAvx2) return &avx2::kTransforms;
#endif
  return nullptr;
}

struct Free {
  void operator()(void *data) const { std::free(data); }
};
using Memory = std::unique_ptr<void, Free>;

// Points lie so far apart that the last page should be a large one too.
Memory allocate_pages(int64_t bytes) {
  return Memory(bytes > INT64_MAX - kLargePage ? nullptr : allocate(round_up(bytes, kLargePage)));
}

// Of the calling thread, kept for its next use.
void *workspace(int64_t bytes) {
  thread_local Memory memory;
  thread_local int64_t size = 0;
  if (bytes > size || !memory) {
    memory.reset();
    memory = allocate_pages(bytes);
    size = memory ? bytes : 0;
  }
  return memory.get();
}

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

  int64_t point_size() const { return pairs * 2 * padded_outputs; }  // of packed weights
};

constexpr int64_t kLeastKernel = 5, kMostKernel = 11;
constexpr int64_t kLeastChannels = 32;
constexpr int64_t kMostSize = 1 << 16;  // of channels and outputs: `largest_sum` stays within int32
static_assert(kSize + 1 - kLeastKernel <= kMostTile);

bool applies(const kvant_conv_layer &layer) {
  for (int axis = 0; axis < 2; ++axis) {
    if (layer.strides[axis] != 1 || layer.dilations[axis] != 1) return false;
    if (layer.kernel[axis] < kLeastKernel || layer.kernel[axis] > kMostKernel) return false;
  }
  return transforms() != nullptr && !layer.transposed && layer.groups == 1 && layer.dtype == KVANT_UINT8 &&
         !layer.sums.wide && layer.channels >= kLeastChannels && layer.channels <= kMostSize && layer.outputs >= 1 &&
         layer.outputs <= kMostSize;
}

// The sums of an output's positive weights and of its negative ones; false where one is beyond int8.
bool add_weights(const kvant_conv_layer &layer, int64_t output, int64_t *positive, int64_t *negative) {
  const int64_t count = layer.channels * layer.kernel[0] * layer.kernel[1];
  const int16_t *values = layer.values + output * count;
  *positive = *negative = 0;
  bool fits = true;
  for (int64_t i = 0; i < count; ++i) {
    fits &= values[i] >= -127 && values[i] <= 127;
    *(values[i] > 0 ? positive : negative) += values[i];
  }
  return fits;
}

class Transform final : public Algorithm {
 public:
  // Of a layer that it applies to; to be packed before all else.
  Transform(const kvant_conv_layer &layer, const Transforms &transforms)
      : transforms_(transforms), shape_(layer, transforms.lanes), settlings_(groups()) {}

  // Pack the layer; false if it cannot be proven exact.
  bool pack(const kvant_conv_layer &layer);

  const char *name() const override { return "transform"; }
  int64_t bytes() const override { return kPrimes * kPoints * shape_.point_size() * 2; }
  Format format() const override { return Format::kRaw; }
  Reach reach(const int64_t output_size[2]) const override;
  int32_t run(const Job &job) const override;

 private:
  struct Call;

  size_t groups() const { return static_cast<size_t>(shape_.padded_outputs / transforms_.lanes); }
  bool choose_field(const kvant_conv_layer &layer);
  void settle(int64_t output, int64_t bias, float multiplier, int64_t low, int64_t high);
  int32_t pack_pair(const kvant_conv_layer &layer, int64_t pair) const;
  int64_t block_groups(int64_t group) const;
  int16_t *packed(int64_t group, int64_t pair) const;
  bool choose_segments();
  bool sums_fit(int64_t segments) const;
  int64_t largest_sum(int64_t point, int64_t begin, int64_t end) const;
  void forward(const Call &call, int64_t first, int64_t item) const;
  void multiply(const Call &call, int64_t count, int64_t item) const;
  void backward(const Call &call, int64_t first, int64_t item) const;
  void work(Call *call) const;

  const Transforms &transforms_;
  Shape shape_;
  const Field *field_ = nullptr;
  int64_t segments_ = 1;
  std::vector<Settling> settlings_;  // one for each group of lanes outputs
  Memory weights_;  // [prime and point][block][pair][group of the block][even and odd outputs][2]
};

// The smallest range of sums that holds every output's.
bool Transform::choose_field(const kvant_conv_layer &layer) {
  int64_t widest = 0;
  for (int64_t output = 0; output < shape_.outputs; ++output) {
    int64_t positive, negative;
    if (!add_weights(layer, output, &positive, &negative)) return false;
    widest = std::max(widest, 255 * (positive - negative));
    if (widest >= kFields[1].product()) return false;
    // Modulo 2^32, since the true sum with its bias fits int32.
    const int64_t bias = layer.bias[output] - layer.zero_point * (positive + negative);
    settle(output, bias, layer.multipliers[output], 255 * negative, 255 * positive);
  }
  field_ = &kFields[widest < kFields[0].product() ? 0 : 1];
  return true;
}

void Transform::settle(int64_t output, int64_t bias, float multiplier, int64_t low, int64_t high) {
  const int64_t lanes = transforms_.lanes, lane = output % lanes, at = lane % 2 * (lanes / 2) + lane / 2;
  Settling &to = settlings_[static_cast<size_t>(output / lanes)];
  to.bias[at] = static_cast<int32_t>(static_cast<uint32_t>(bias));
  to.low[at] = static_cast<int32_t>(low);
  to.high[at] = static_cast<int32_t>(high);
  to.multipliers[at] = multiplier;
}

// Groups of the block that a group belongs to: the last one may have fewer.
int64_t Transform::block_groups(int64_t group) const {
  const int64_t first = group - group % transforms_.groups;
  return std::min(transforms_.groups, shape_.padded_outputs / transforms_.lanes - first);
}

// Where the first point's weights of a group of outputs lie.
int16_t *Transform::packed(int64_t group, int64_t pair) const {
  const int64_t first = group - group % transforms_.groups;
  return static_cast<int16_t *>(weights_.get()) +
         (first * shape_.pairs + pair * block_groups(group) + group - first) * 2 * transforms_.lanes;
}

// Kernels of one channel and the group's outputs as tiles.
void spread_kernels(const kvant_conv_layer &layer, int64_t channel, int64_t group, int64_t lanes, int16_t *tile) {
  std::fill(tile, tile + kPoints * lanes, int16_t{0});
  if (channel >= layer.channels) return;
  const int64_t area = layer.kernel[0] * layer.kernel[1];
  for (int64_t lane = 0; lane < std::min(lanes, layer.outputs - group * lanes); ++lane) {
    const int16_t *values = layer.values + ((group * lanes + lane) * layer.channels + channel) * area;
    for (int64_t i = 0; i < area; ++i) {
      tile[(i / layer.kernel[1] * kSize + i % layer.kernel[1]) * lanes + lane] = values[i];
    }
  }
}

// Two channels of a point side by side: first even, then odd outputs.
void interleave(int64_t lanes, const int16_t *first, const int16_t *second, int16_t *to) {
  for (int64_t side = 0; side < 2; ++side, to += lanes) {
    for (int64_t i = 0; i < lanes / 2; ++i) {
      to[2 * i] = first[2 * i + side];
      to[2 * i + 1] = second[2 * i + side];
    }
  }
}

// Both channels of a pair, at all points, for all outputs.
int32_t Transform::pack_pair(const kvant_conv_layer &layer, int64_t pair) const {
  const int64_t lanes = transforms_.lanes, all = kPrimes * kPoints * lanes;
  int16_t *tile = scratch_array<int16_t>(0, kPoints * lanes), *points = scratch_array<int16_t>(1, 2 * all);
  KVANT_REQUIRE(tile && points, KVANT_NO_MEMORY);
  for (int64_t group = 0; group < shape_.padded_outputs / lanes; ++group) {
    for (int64_t side = 0; side < 2; ++side) {
      spread_kernels(layer, 2 * pair + side, group, lanes, tile);
      transforms_.forward_weights({field_->moduli, tile, kSize * lanes, lanes, points + side * all, lanes});
    }
    int16_t *to = packed(group, pair);
    for (int64_t point = 0; point < kPrimes * kPoints; ++point, to += shape_.point_size()) {
      interleave(lanes, points + point * lanes, points + all + point * lanes, to);
    }
  }
  return KVANT_OK;
}

// The largest sum of magnitudes of an output's weights for some pairs at a point.
int64_t Transform::largest_sum(int64_t point, int64_t begin, int64_t end) const {
  const int64_t lanes = transforms_.lanes;
  int32_t largest = 0;
  for (int64_t group = 0; group < shape_.padded_outputs / lanes; ++group) {
    const int16_t *from = packed(group, begin) + point * shape_.point_size();
    int32_t sums[kMostLanes] = {};
    for (int64_t pair = begin; pair < end; ++pair, from += block_groups(group) * 2 * lanes) {
      for (int64_t i = 0; i < lanes; ++i) sums[i] += std::abs(from[2 * i]) + std::abs(from[2 * i + 1]);
    }
    largest = std::max(largest, *std::max_element(sums, sums + lanes));
  }
  return largest;
}

// Whether no sum of a segment can leave int32, nor `shrink` int16. Transformed pixels are within R; what a segment
// starts from is shrink's 16 bits times `wrap`; shrink's numerator is the sum - q p with |q| <= 2^15, so that within
// 2^31 - 1 its quotient by 2^16 fits. Every partial sum of a segment is within the same bound.
bool Transform::sums_fit(int64_t segments) const {
  return parallel(kPrimes * kPoints, 8, [&](int64_t begin, int64_t end) -> int32_t {
           for (int64_t point = begin; point < end; ++point) {
             const Modulus &modulus = field_->moduli[point / kPoints];
             for (int64_t i = 0; i < segments; ++i) {
               const int64_t from = shape_.pairs * i / segments, to = shape_.pairs * (i + 1) / segments;
               const int64_t sum = reduced(modulus.prime) * largest_sum(point, from, to);
               const int64_t before = i == 0 ? 0 : int64_t{32768} * std::abs(modulus.wrap);
               if (before + sum + int64_t{32768} * modulus.prime > INT32_MAX) return 1;
             }
           }
           return 0;
         }) == 0;
}

bool Transform::choose_segments() {
  // One pair adds less than 2^27, wraps and q p are less than 2^30: with as many segments as pairs, sums fit surely.
  for (segments_ = 1; segments_ <= shape_.pairs; ++segments_) {
    if (sums_fit(segments_)) return true;
  }
  return false;
}

bool Transform::pack(const kvant_conv_layer &layer) {
  if (!choose_field(layer)) return false;
  weights_ = allocate_pages(bytes());
  if (!weights_) throw std::bad_alloc();
  const int32_t status = parallel(shape_.pairs, 1, [&](int64_t begin, int64_t end) -> int32_t {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int32_t result = pack_pair(layer, pair);
      if (result != KVANT_OK) return result;
    }
    return KVANT_OK;
  });
  if (status != KVANT_OK) throw std::bad_alloc();
  return choose_segments();
}

Reach Transform::reach(const int64_t output_size[2]) const {
  Reach result{0, 0, shape_.padded_channels - shape_.channels};
  result.rows = round_up(output_size[0], shape_.tile[0]) + shape_.kernel[0] - 1;
  result.columns = round_up(output_size[1], shape_.tile[1]) + shape_.kernel[1] - 1;
  return result;
}

// Tiles that are worked on at a time: as many as the third-level cache holds, since each time all weights are read.
constexpr int64_t kCacheBytes = int64_t{20} << 20;
constexpr int64_t kLeastTiles = 24;
constexpr int64_t kPointsAtOnce = 8;

// Elements from point to point: an odd number of cache lines, so that points do not share cache sets.
int64_t spaced(int64_t elements) { return (divide_up(elements, 32) | 1) * 32; }

// One application. Rounds of tiles, each of three steps of independent items; items are numbered in that order, and
// threads take one after the other. An item waits until those of earlier steps are done; they are being worked on.
struct Transform::Call {
  const Job &job;
  int64_t grid[2];   // tiles of an image
  int64_t tiles;     // of all images
  int64_t round;     // tiles of a round, the last one may have fewer
  int64_t tile_stride, sum_stride;
  int16_t *points, *sums;
  std::atomic<int64_t> next{0}, done{0};

  Call(const Job &the_job, const Shape &shape)
      : job(the_job),
        grid{divide_up(job.output_size[0], shape.tile[0]), divide_up(job.output_size[1], shape.tile[1])},
        tiles(job.batch * grid[0] * grid[1]) {
    const int64_t bytes = kPrimes * kPoints * 2 * (shape.padded_channels + shape.padded_outputs);
    const int64_t most = std::max(kLeastTiles, kCacheBytes / bytes);
    round = divide_up(tiles, divide_up(tiles, most));
    tile_stride = spaced(round * shape.padded_channels);
    sum_stride = spaced(round * shape.padded_outputs);
  }

  bool allocate() {
    points = static_cast<int16_t *>(workspace(kPrimes * kPoints * 2 * (tile_stride + sum_stride)));
    sums = points == nullptr ? nullptr : points + kPrimes * kPoints * tile_stride;
    return points != nullptr;
  }

  void wait_for(int64_t items) const {
    for (int64_t spins = 0; done.load(std::memory_order_acquire) < items; ++spins) {
      if (spins > 200) std::this_thread::yield();
    }
  }
};

void Transform::forward(const Call &call, int64_t first, int64_t item) const {
  const int64_t lanes = transforms_.lanes, groups = shape_.padded_channels / lanes;
  const int64_t local = item / groups, tile = first + local, channel = item % groups * lanes;
  const int64_t row = tile / call.grid[1] % call.grid[0], column = tile % call.grid[1];
  const Padded &x = call.job.x;
  const uint8_t *from = x.data + tile / (call.grid[0] * call.grid[1]) * x.image + row * shape_.tile[0] * x.row +
                        column * shape_.tile[1] * x.column + channel;
  transforms_.forward({field_->moduli, from, x.row, x.column,
                       call.points + local * shape_.padded_channels + channel, call.tile_stride});
}

void Transform::multiply(const Call &call, int64_t count, int64_t item) const {
  const int64_t begin = item * kPointsAtOnce, end = begin + kPointsAtOnce;
  for (int64_t point = begin; point < end; ++point) {
    transforms_.multiply({&field_->moduli[point / kPoints], call.points + point * call.tile_stride, count,
                          shape_.padded_channels, point + 1 < end ? call.tile_stride : 0, shape_.pairs, segments_,
                          static_cast<const int16_t *>(weights_.get()) + point * shape_.point_size(),
                          (end - point) * shape_.point_size() * 2, shape_.padded_outputs,
                          call.sums + point * call.sum_stride});
  }
}

void Transform::backward(const Call &call, int64_t first, int64_t item) const {
  const int64_t lanes = transforms_.lanes, groups = shape_.padded_outputs / lanes;
  const int64_t local = item / groups, tile = first + local, group = item % groups, output = group * lanes;
  const int64_t image = tile / (call.grid[0] * call.grid[1]);
  const int64_t row = tile / call.grid[1] % call.grid[0] * shape_.tile[0];
  const int64_t column = tile % call.grid[1] * shape_.tile[1];
  const Job &job = call.job;
  const int64_t pixel = (image * job.output_size[0] + row) * job.output_size[1] + column;
  transforms_.backward({field_->moduli, field_->first_inverse,
                        call.sums + local * shape_.padded_outputs + output, call.sum_stride,
                        &settlings_[static_cast<size_t>(group)], job.target,
                        job.y + (pixel * job.y_stride + output) * size_of(job.target.dtype),
                        std::min(shape_.tile[0], job.output_size[0] - row),
                        std::min(shape_.tile[1], job.output_size[1] - column), job.output_size[1] * job.y_stride,
                        job.y_stride, std::min(lanes, shape_.outputs - output)});
}

void Transform::work(Call *call) const {
  const int64_t ins = shape_.padded_channels / transforms_.lanes, outs = shape_.padded_outputs / transforms_.lanes;
  constexpr int64_t kItems = kPrimes * kPoints / kPointsAtOnce;
  const int64_t whole = call->round * (ins + outs) + kItems;
  const int64_t total = call->tiles * (ins + outs) + divide_up(call->tiles, call->round) * kItems;
  for (int64_t item; (item = call->next.fetch_add(1)) < total; call->done.fetch_add(1, std::memory_order_release)) {
    const int64_t start = item / whole * whole, first = item / whole * call->round, rest = item - start;
    const int64_t count = std::min(call->round, call->tiles - first);
    if (rest < count * ins) {
      call->wait_for(start);
      forward(*call, first, rest);
    } else if (rest < count * ins + kItems) {
      call->wait_for(start + count * ins);
      multiply(*call, count, rest - count * ins);
    } else {
      call->wait_for(start + count * ins + kItems);
      backward(*call, first, rest - count * ins - kItems);
    }
  }
}

int32_t Transform::run(const Job &job) const {
  if (job.batch * job.output_size[0] * job.output_size[1] == 0) return KVANT_OK;
  Call call(job, shape_);
  KVANT_REQUIRE(call.allocate(), KVANT_NO_MEMORY);
  return parallel(num_threads(), 1, [&](int64_t, int64_t) -> int32_t {
    work(&call);
    return KVANT_OK;
  });
}

}  // namespace
}  // namespace transform

int64_t transform_bytes(const kvant_conv_layer &layer) {
  using namespace transform;
  if (!applies(layer)) return 0;
  return kPrimes * kPoints * 2 * Shape(layer, transforms()->lanes).point_size();
}

std::unique_ptr<Algorithm> make_transform(const kvant_conv_layer &layer) {
  using namespace transform;
  if (!applies(layer)) return nullptr;
  auto algorithm = std::make_unique<Transform>(layer, *transforms());
  if (!algorithm->pack(layer)) return nullptr;
  return algorithm;
}

}  // namespace kvant
