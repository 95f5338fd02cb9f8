// Convolution with large kernels by a number-theoretic transform: exact, with a fifth of the multiplications.
//
// A tile of 16 x 16 pixels gives (17 - K) x (17 - K) results. Its channels are transformed modulo each of two primes
// that have roots of unity of order 16; at each of the 2 x 256 points, sums over channels are a matrix product; the
// inverse transforms give every result modulo both primes, thus modulo their product P. The sums of an output lie
// between low = 255 * (sum of its negative weights) and high = 255 * (sum of its positive ones): where high - low < P
// that is enough to know them. The zero point is folded into the bias, so that pixels are 0..255 as they come.
//
// transform_fields.h proves that 16-bit lanes never overflow, transform_weights.cpp that sums over channels do not.
#include "transform.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "threads.h"
#include "transform_fields.h"
#include "transform_weights.h"

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

constexpr int64_t kLeastKernel = 5;
constexpr int64_t kLeastChannels = 32;
constexpr int64_t kMostSize = 1 << 16;  // of channels and outputs: sums of magnitudes stay within int32
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
  Transform(const kvant_conv_layer &layer, const Transforms &transforms, bool late)
      : transforms_(transforms),
        shape_(layer, transforms.lanes),
        late_(late),
        settlings_(static_cast<size_t>(shape_.padded_outputs / transforms.lanes)),
        weights_(shape_, transforms, late) {}

  // Pack the layer; false if it cannot be proven exact.
  bool pack(const kvant_conv_layer &layer);

  const char *name() const override { return late_ ? "transform-late" : "transform"; }
  int64_t bytes() const override { return weights_.bytes(); }
  Format format() const override { return Format::kRaw; }
  Reach reach(const int64_t output_size[2]) const override;
  int32_t run(const Job &job) const override;

 private:
  struct Call;

  bool choose_field(const kvant_conv_layer &layer);
  void settle(int64_t output, int64_t bias, float multiplier, int64_t low, int64_t high);
  void forward(const Call &call, int64_t first, int64_t item) const;
  void multiply(const Call &call, int64_t count, int64_t item, int16_t *room) const;
  void backward(const Call &call, int64_t first, int64_t item) const;
  int32_t work(Call *call) const;

  const Transforms &transforms_;
  Shape shape_;
  bool late_;
  const Field *field_ = nullptr;
  std::vector<Settling> settlings_;  // one for each group of lanes outputs
  PointWeights weights_;
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

bool Transform::pack(const kvant_conv_layer &layer) { return choose_field(layer) && weights_.pack(layer, *field_); }

Reach Transform::reach(const int64_t output_size[2]) const {
  Reach result{0, 0, shape_.padded_channels - shape_.channels};
  result.rows = round_up(output_size[0], shape_.tile[0]) + shape_.kernel[0] - 1;
  result.columns = round_up(output_size[1], shape_.tile[1]) + shape_.kernel[1] - 1;
  return result;
}

// Tiles that are worked on at a time: as many as the third-level cache holds, since each time all weights are read.
constexpr int64_t kCacheBytes = int64_t{20} << 20;
constexpr int64_t kLeastTiles = 24;

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
    points = call_array<int16_t>(kPrimes * kPoints * (tile_stride + sum_stride));
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

void Transform::multiply(const Call &call, int64_t count, int64_t item, int16_t *room) const {
  const int64_t part = item / weights_.groups(), output = item % weights_.groups() * transforms_.lanes;
  const int16_t *weights = weights_.at_points(item, room);
  for (int64_t local = 0; local < kPartPoints; ++local, weights += weights_.point_size()) {
    const int64_t point = point_of(part, local);
    const bool last = local + 1 == kPartPoints;
    const int64_t next = last ? 0 : (point_of(part, local + 1) - point) * call.tile_stride;
    transforms_.multiply({&field_->moduli[point / kPoints], call.points + point * call.tile_stride, count,
                          shape_.padded_channels, next, shape_.pairs, weights_.segments(), weights,
                          last ? nullptr : weights + weights_.point_size(),
                          call.sums + point * call.sum_stride + output, shape_.padded_outputs});
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

int32_t Transform::work(Call *call) const {
  const int64_t ins = shape_.padded_channels / transforms_.lanes, outs = shape_.padded_outputs / transforms_.lanes;
  const int64_t items = weights_.items(), whole = call->round * (ins + outs) + items;
  const int64_t total = call->tiles * (ins + outs) + divide_up(call->tiles, call->round) * items;
  int16_t *room = weights_.room();
  KVANT_REQUIRE(room != nullptr, KVANT_NO_MEMORY);
  for (int64_t item; (item = call->next.fetch_add(1)) < total; call->done.fetch_add(1, std::memory_order_release)) {
    const int64_t start = item / whole * whole, first = item / whole * call->round, rest = item - start;
    const int64_t count = std::min(call->round, call->tiles - first);
    if (rest < count * ins) {
      call->wait_for(start);
      forward(*call, first, rest);
    } else if (rest < count * ins + items) {
      call->wait_for(start + count * ins);
      multiply(*call, count, rest - count * ins, room);
    } else {
      call->wait_for(start + count * ins + items);
      backward(*call, first, rest - count * ins - items);
    }
  }
  return KVANT_OK;
}

int32_t Transform::run(const Job &job) const {
  if (job.batch * job.output_size[0] * job.output_size[1] == 0) return KVANT_OK;
  Call call(job, shape_);
  KVANT_REQUIRE(call.allocate(), KVANT_NO_MEMORY);
  return parallel(num_threads(), 1, [&](int64_t, int64_t) { return work(&call); });
}

}  // namespace
}  // namespace transform

int64_t transform_bytes(const kvant_conv_layer &layer, bool late) {
  using namespace transform;
  if (!applies(layer)) return 0;
  return PointWeights(Shape(layer, transforms()->lanes), *transforms(), late).bytes();
}

int64_t transform_room(const kvant_conv_layer &layer) {
  using namespace transform;
  if (!applies(layer)) return 0;
  return PointWeights(Shape(layer, transforms()->lanes), *transforms(), true).item_size() * 2 * num_threads();
}

std::unique_ptr<Algorithm> make_transform(const kvant_conv_layer &layer, bool late) {
  using namespace transform;
  if (!applies(layer)) return nullptr;
  auto algorithm = std::make_unique<Transform>(layer, *transforms(), late);
  if (!algorithm->pack(layer)) return nullptr;
  return algorithm;
}

}  // namespace kvant
