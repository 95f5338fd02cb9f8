// Depthwise convolution: one output for each channel, from that channel alone. Work is cut into rows of output pixels.
#include "depthwise.h"

#include <algorithm>
#include <vector>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "packing.h"
#include "threads.h"

namespace kvant {

namespace portable {
extern const DepthwiseLoops kDepthwiseLoops;
}
#if defined(KVANT_HAVE_X86)
namespace avx2 {
extern const DepthwiseLoops kDepthwiseLoops;
}
namespace avx512vnni {
extern const DepthwiseLoops kDepthwiseLoops;
}
#endif

namespace {

constexpr int64_t kFewChannels = 4;            // up to here a dense kernel with zeros is faster
constexpr int64_t kProductsPerCall = 1 << 17;  // less is not worth a second thread

const DepthwiseLoops &depthwise_loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return avx512vnni::kDepthwiseLoops;
  if (isa() == Isa::kAvx2) return avx2::kDepthwiseLoops;
#endif
  return portable::kDepthwiseLoops;
}

// Which tap each place of the groups takes; -1: none, the weight is zero.
using Order = std::vector<int64_t>;

// Row after row of the kernel, or column after column, filled up to whole groups at the end or after each column.
Order order_of(const kvant_conv_layer &layer, int64_t group, bool by_columns) {
  Order order;
  const int64_t taps = layer.kernel[0] * layer.kernel[1];
  for (int64_t i = 0; i < taps; ++i) {
    order.push_back(by_columns ? i % layer.kernel[0] * layer.kernel[1] + i / layer.kernel[0] : i);
    const bool ends = by_columns ? (i + 1) % layer.kernel[0] == 0 : i + 1 == taps;
    while (ends && static_cast<int64_t>(order.size()) % group != 0) order.push_back(-1);
  }
  return order;
}

// How some of the blocks are computed.
struct Plan {
  DepthwiseFunction function;
  int64_t vectors;  // of a block: taps of a group
  Order order;

  int64_t groups() const { return static_cast<int64_t>(order.size()) / vectors; }
  int64_t width() const { return vectors * depthwise_loops().lanes; }  // channels
};

struct Block {
  const Plan *plan;
  int64_t first_channel, channels;
  int64_t weights;  // offset, bytes
  int64_t lanes;    // offset of its first bias
};

class Depthwise : public Algorithm {
 public:
  explicit Depthwise(const kvant_conv_layer &layer);

  const char *name() const override { return "depthwise"; }
  int64_t bytes() const override { return weights_.bytes() + bias_.bytes() + multipliers_.bytes(); }
  Format format() const override { return Format::kRaw; }
  Reach reach(const int64_t output_size[2]) const override;
  int32_t run(const Job &job) const override;

 private:
  void choose(bool bytes);
  void cut_blocks();
  void pack(const kvant_conv_layer &layer, const Block &block);
  void pack_lane(const kvant_conv_layer &layer, const Block &block, int64_t lane, int64_t channel);
  std::vector<int64_t> offsets(const Padded &x, const Plan &plan) const;
  void run_row(const Job &job, const int64_t *whole, const int64_t *rest, int64_t line) const;

  kvant_conv_layer layer_;  // pointers are null
  Plan whole_, rest_;       // `rest_` for a last block that is much narrower
  std::vector<Block> blocks_;
  AlignedArray<uint8_t> weights_;
  AlignedArray<int32_t> bias_;
  AlignedArray<float> multipliers_;
};

Depthwise::Depthwise(const kvant_conv_layer &layer) : layer_(layer) {
  layer_.values = nullptr;
  layer_.bias = nullptr;
  layer_.multipliers = nullptr;
  const int64_t count = layer.outputs * layer.kernel[0] * layer.kernel[1];
  const bool narrow = std::all_of(layer.values, layer.values + count,
                                  [](int16_t value) { return value >= -128 && value <= 127; });
  choose(narrow && layer.dtype == KVANT_UINT8 && depthwise_loops().bytes != nullptr);
  cut_blocks();
  for (const Block &block : blocks_) pack(layer, block);
}

void Depthwise::choose(bool bytes) {
  const DepthwiseLoops &loops = depthwise_loops();
  rest_ = {layer_.dtype == KVANT_UINT8 ? loops.shorts_of_uint8 : loops.shorts, 2, order_of(layer_, 2, false)};
  whole_ = rest_;
  if (!bytes) return;
  const bool three = layer_.kernel[1] == 3 && layer_.kernel[0] >= 2 && layer_.kernel[0] <= 4;
  const bool slides = three && layer_.strides[1] == 1 && layer_.dilations[1] == 1 && loops.three_columns != nullptr;
  whole_ = {slides ? loops.three_columns : loops.bytes, 4, order_of(layer_, 4, slides)};
}

void Depthwise::cut_blocks() {
  int64_t weights = 0, lanes = 0;
  for (int64_t first = 0; first < layer_.channels;) {
    const int64_t left = layer_.channels - first;
    const Plan &plan = left <= rest_.width() ? rest_ : whole_;
    blocks_.push_back({&plan, first, std::min(left, plan.width()), weights, lanes});
    weights += plan.groups() * plan.width() * 4;
    lanes += plan.width();
    first += plan.width();
  }
  weights_ = AlignedArray<uint8_t>(weights);
  bias_ = AlignedArray<int32_t>(lanes);
  multipliers_ = AlignedArray<float>(lanes);
}

void Depthwise::pack(const kvant_conv_layer &layer, const Block &block) {
  const DepthwiseLoops &loops = depthwise_loops();
  for (int64_t lane = 0; lane < block.plan->width(); ++lane) {
    const int64_t channel = loops.channel(block.plan->vectors, lane / loops.lanes, lane % loops.lanes);
    if (channel < block.channels) pack_lane(layer, block, lane, block.first_channel + channel);
  }
}

// The first tap of a group has the lowest bits.
void Depthwise::pack_lane(const kvant_conv_layer &layer, const Block &block, int64_t lane, int64_t channel) {
  const Plan &plan = *block.plan;
  const int16_t *values = layer.values + channel * layer.kernel[0] * layer.kernel[1];
  const int bits = static_cast<int>(32 / plan.vectors);
  uint32_t sum = 0;
  for (int64_t g = 0; g < plan.groups(); ++g) {
    uint32_t group = 0;
    for (int64_t t = 0; t < plan.vectors; ++t) {
      const int64_t tap = plan.order[static_cast<size_t>(g * plan.vectors + t)];
      const uint32_t value = tap < 0 ? 0 : static_cast<uint32_t>(static_cast<int32_t>(values[tap]));
      group |= (value & ((1u << bits) - 1)) << (bits * t);
      sum += value;
    }
    std::memcpy(weights_.data() + block.weights + (g * plan.width() + lane) * 4, &group, sizeof group);
  }
  const uint32_t bias = static_cast<uint32_t>(layer.bias[channel]) - static_cast<uint32_t>(layer.zero_point) * sum;
  bias_.data()[block.lanes + lane] = static_cast<int32_t>(bias);
  multipliers_.data()[block.lanes + lane] = layer.multipliers[channel];
}

Reach Depthwise::reach(const int64_t output_size[2]) const {
  int64_t size[2];
  for (int axis = 0; axis < 2; ++axis) {
    size[axis] = (output_size[axis] - 1) * layer_.strides[axis] + (layer_.kernel[axis] - 1) * layer_.dilations[axis] + 1;
  }
  return {size[0], size[1], blocks_.back().plan->width() - blocks_.back().channels};
}

// Places without a tap read what their group's first one reads.
std::vector<int64_t> Depthwise::offsets(const Padded &x, const Plan &plan) const {
  std::vector<int64_t> result;
  for (size_t i = 0; i < plan.order.size(); ++i) {
    const size_t first = i - i % static_cast<size_t>(plan.vectors);
    const int64_t tap = plan.order[plan.order[i] < 0 ? first : i];
    const int64_t row = tap / layer_.kernel[1] * layer_.dilations[0];
    const int64_t column = tap % layer_.kernel[1] * layer_.dilations[1];
    result.push_back((row * x.row + column * x.column) * size_of(layer_.dtype));
  }
  return result;
}

void Depthwise::run_row(const Job &job, const int64_t *whole, const int64_t *rest, int64_t line) const {
  const int64_t image = line / job.output_size[0], row = line % job.output_size[0];
  const int64_t input = size_of(layer_.dtype), output = size_of(job.target.dtype);
  const uint8_t *x = job.x.data + (image * job.x.image + row * layer_.strides[0] * job.x.row) * input;
  uint8_t *y = job.y + line * job.output_size[1] * job.y_stride * output;
  DepthwiseWork work{};
  work.column = job.x.column * layer_.strides[1] * input;
  work.count = job.output_size[1];
  work.target = &job.target;
  work.y_stride = job.y_stride * output;
  for (const Block &block : blocks_) {
    work.x = x + block.first_channel * input;
    work.offsets = block.plan == &whole_ ? whole : rest;
    work.groups = block.plan->groups();
    work.weights = weights_.data() + block.weights;
    work.bias = bias_.data() + block.lanes;
    work.multipliers = multipliers_.data() + block.lanes;
    work.channels = block.channels;
    work.y = y + block.first_channel * output;
    block.plan->function(work);
  }
}

int32_t Depthwise::run(const Job &job) const {
  const std::vector<int64_t> whole = offsets(job.x, whole_), rest = offsets(job.x, rest_);
  const int64_t products = job.output_size[1] * layer_.channels * layer_.kernel[0] * layer_.kernel[1];
  const int64_t grain = divide_up(kProductsPerCall, products);
  return parallel(job.batch * job.output_size[0], grain, [&](int64_t begin, int64_t end) -> int32_t {
    for (int64_t line = begin; line < end; ++line) run_row(job, whole.data(), rest.data(), line);
    return KVANT_OK;
  });
}

}  // namespace

std::unique_ptr<Algorithm> make_depthwise(const kvant_conv_layer &layer) {
  const bool applies = !layer.transposed && layer.groups == layer.channels && layer.outputs == layer.channels;
  if (!applies || layer.sums.wide || layer.channels <= kFewChannels) return nullptr;
  return std::make_unique<Depthwise>(layer);
}

}  // namespace kvant
