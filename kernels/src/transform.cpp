// Convolution with large kernels by a number-theoretic transform: exact, with a fifth of the multiplications.
//
// A tile of 16 x 16 pixels gives (17 - K) x (17 - K) results. Its channels are transformed modulo each of two primes
// that have roots of unity of order 16; at each of the 2 x 256 points, sums over channels are a matrix product; the
// inverse transforms, first down, then across, give every result modulo both primes, thus modulo their product P. The sums of an output lie
// between low = 255 * (sum of its negative weights) and high = 255 * (sum of its positive ones): where high - low < P
// that is enough to know them. The zero point is folded into the bias, so that pixels are 0..255 as they come.
//
// transform_fields.h proves that 16-bit lanes never overflow, transform_weights.cpp that sums over channels do not.
#include "transform.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
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
namespace avxvnni {
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
#if defined(KVANT_HAVE_AVXVNNI)
  if (isa() == Isa::kAvxVnni) return &avxvnni::kTransforms;
#endif
  if (isa() == Isa::kAvx2) return &avx2::kTransforms;
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
  struct Chunk;
  struct Place;

  bool choose_field(const kvant_conv_layer &layer);
  void settle(int64_t output, int64_t bias, float multiplier, int64_t low, int64_t high);
  const Modulus *modulus_of(int64_t part) const { return &field_->moduli[part / kResidues]; }
  int64_t quarter_size() const { return kMostTile * kAcross * transforms_.lanes; }  // halves of a part
  int64_t halves_size() const { return weights_.groups() * kParts * quarter_size(); }  // of a tile
  int64_t chunks_of(int64_t tiles) const;
  Place place_of(const Call &call, int64_t tile) const;
  void forward(const Call &call, const Chunk &chunk) const;
  void multiply(const Chunk &chunk, int64_t group) const;
  void backward_columns(const Call &call, const Chunk &chunk, int64_t group) const;
  void backward_rows(const Call &call, int64_t item) const;
  int32_t run_items(const Call &call, int64_t begin, int64_t end) const;

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

constexpr int kPointsSlot = 1, kSumsSlot = 2;  // of scratch memory; weights have slot 0

constexpr int64_t kLeastTiles = 12;                     // of a chunk: products of fewer are slower
constexpr int64_t kLateChunkBytes = int64_t{4} << 20;  // of its points; late weights are transformed once more for each
constexpr int64_t kRoundBytes = int64_t{10} << 20;     // of halves of a round: they stay in the cache that threads share

// Points of a chunk stay in a core's own cache, beside weights that come from memory.
int64_t chunk_bytes() {
  static const int64_t bytes = [] {
    int64_t cache = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp<int64_t>(cache > 0 ? cache : 1 << 20, 1 << 19, 1 << 21) * 3 / 5;
  }();
  return bytes;
}

// One application, in rounds of tiles. Of each round first the points are taken, part by part, from pixels to halves, then
// the rows. A part's points are those of a chunk of the tiles; an item is what one group of outputs makes of them.
struct Transform::Call {
  const Job &job;
  int64_t grid[2];               // tiles of an image
  int64_t tiles;                 // of all images
  int64_t round;                 // tiles of a round, the last one may have fewer
  int64_t first = 0, count = 0;  // tiles of this round
  int64_t chunks = 0;            // of them
  int16_t *halves = nullptr;     // [tile of the round][group][part][kMostTile][frequency across][lanes]

  Call(const Job &the_job, const Shape &shape, int64_t size)
      : job(the_job),
        grid{divide_up(job.output_size[0], shape.tile[0]), divide_up(job.output_size[1], shape.tile[1])},
        tiles(job.batch * grid[0] * grid[1]),
        round(divide_up(tiles, divide_up(tiles, std::max<int64_t>(1, kRoundBytes / size / 2)))) {}
};

// Where a tile's first result lies.
struct Transform::Place {
  int64_t image, row, column;
};

// A part's points of some tiles, the first of them counted within the round, and their sums for a group of outputs.
struct Transform::Chunk {
  int64_t part, first, count;
  int64_t point_size, sum_size;  // elements from point to point
  int16_t *points, *sums, *room;

  bool allocate(const Transform &self, int64_t most) {
    point_size = spaced(most * self.shape_.padded_channels);
    sum_size = spaced(most * self.transforms_.lanes);
    points = scratch_array<int16_t>(kPointsSlot, kPartPoints * point_size);
    sums = scratch_array<int16_t>(kSumsSlot, kPartPoints * sum_size);
    room = self.weights_.room();
    return points != nullptr && sums != nullptr && room != nullptr;
  }
};

Transform::Place Transform::place_of(const Call &call, int64_t tile) const {
  const int64_t within = tile % (call.grid[0] * call.grid[1]);
  return {tile / (call.grid[0] * call.grid[1]), within / call.grid[1] * shape_.tile[0],
          within % call.grid[1] * shape_.tile[1]};
}

void Transform::forward(const Call &call, const Chunk &chunk) const {
  const Padded &x = call.job.x;
  for (int64_t t = 0; t < chunk.count; ++t) {
    const Place place = place_of(call, call.first + chunk.first + t);
    const uint8_t *from = x.data + place.image * x.image + place.row * x.row + place.column * x.column;
    for (int64_t channel = 0; channel < shape_.padded_channels; channel += transforms_.lanes) {
      transforms_.forward({modulus_of(chunk.part), chunk.part % kResidues, from + channel, x.row, x.column,
                           chunk.points + t * shape_.padded_channels + channel, chunk.point_size});
    }
  }
}

void Transform::multiply(const Chunk &chunk, int64_t group) const {
  const int16_t *weights = weights_.at_points(chunk.part * weights_.groups() + group, chunk.room);
  for (int64_t point = 0; point < kPartPoints; ++point, weights += weights_.point_size()) {
    const bool last = point + 1 == kPartPoints;
    transforms_.multiply({modulus_of(chunk.part), chunk.points + point * chunk.point_size, chunk.count,
                          shape_.padded_channels, shape_.pairs, weights_.segments(), weights,
                          last ? weights : weights + weights_.point_size(), chunk.sums + point * chunk.sum_size,
                          transforms_.lanes});
  }
}

void Transform::backward_columns(const Call &call, const Chunk &chunk, int64_t group) const {
  const int64_t lanes = transforms_.lanes;
  for (int64_t t = 0; t < chunk.count; ++t) {
    const int64_t local = chunk.first + t, row = place_of(call, call.first + local).row;
    int16_t *halves = call.halves + ((local * weights_.groups() + group) * kParts + chunk.part) * quarter_size();
    transforms_.backward_columns({modulus_of(chunk.part), chunk.sums + t * lanes, chunk.sum_size,
                                  std::min(shape_.tile[0], call.job.output_size[0] - row), halves,
                                  halves + halves_size()});
  }
}

void Transform::backward_rows(const Call &call, int64_t item) const {
  const int64_t lanes = transforms_.lanes, group = item % weights_.groups(), output = group * lanes;
  const Place place = place_of(call, call.first + item / weights_.groups());
  const Job &job = call.job;
  const int64_t pixel = (place.image * job.output_size[0] + place.row) * job.output_size[1] + place.column;
  transforms_.backward_rows({field_->moduli, field_->first_inverse, call.halves + item * kParts * quarter_size(),
                             &settlings_[static_cast<size_t>(group)], job.target,
                             job.y + (pixel * job.y_stride + output) * size_of(job.target.dtype),
                             std::min(shape_.tile[0], job.output_size[0] - place.row),
                             std::min(shape_.tile[1], job.output_size[1] - place.column),
                             job.output_size[1] * job.y_stride, job.y_stride, std::min(lanes, shape_.outputs - output)});
}

// Items by part, chunk and group, so that a thread seldom needs the same points twice.
int32_t Transform::run_items(const Call &call, int64_t begin, int64_t end) const {
  const int64_t most = divide_up(call.count, call.chunks), groups = weights_.groups();
  Chunk chunk{};
  KVANT_REQUIRE(chunk.allocate(*this, most), KVANT_NO_MEMORY);
  for (int64_t item = begin; item < end; ++item) {
    if (item == begin || item % groups == 0) {
      const int64_t number = item / groups % call.chunks;
      chunk.part = item / groups / call.chunks;
      chunk.first = call.count * number / call.chunks;
      chunk.count = call.count * (number + 1) / call.chunks - chunk.first;
      forward(call, chunk);
    }
    multiply(chunk, item % groups);
    backward_columns(call, chunk, item % groups);
  }
  return KVANT_OK;
}

int64_t Transform::chunks_of(int64_t tiles) const {
  const int64_t bytes = 2 * kPartPoints * shape_.padded_channels;  // of a tile
  return divide_up(tiles, std::max(kLeastTiles, (late_ ? kLateChunkBytes : chunk_bytes()) / bytes));
}

int32_t Transform::run(const Job &job) const {
  if (job.batch * job.output_size[0] * job.output_size[1] == 0) return KVANT_OK;
  const int64_t groups = weights_.groups();
  Call call(job, shape_, halves_size());
  call.halves = call_array<int16_t>(call.round * halves_size());
  KVANT_REQUIRE(call.halves != nullptr, KVANT_NO_MEMORY);
  for (; call.first < call.tiles; call.first += call.round) {
    call.count = std::min(call.round, call.tiles - call.first);
    call.chunks = chunks_of(call.count);
    const int64_t items = kParts * call.chunks * groups, grain = std::min(groups, items / num_threads());
    const int32_t status = parallel(items, grain, [&](int64_t begin, int64_t end) { return run_items(call, begin, end); });
    KVANT_REQUIRE(status == KVANT_OK, status);
    parallel(call.count * groups, 1, [&](int64_t begin, int64_t end) -> int32_t {
      for (int64_t item = begin; item < end; ++item) backward_rows(call, item);
      return KVANT_OK;
    });
  }
  return KVANT_OK;
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
