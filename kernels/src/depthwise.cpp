// Depthwise convolution: one output for each channel, from that channel alone. Work is cut into strips of rows of output
// pixels; within a strip one block of channels after the other, so that what a row reads is still in the cache for the
// next one.
#include "depthwise.h"

#include <algorithm>
#include <cmath>
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
namespace avxvnni {
extern const DepthwiseLoops kDepthwiseLoops;
}
namespace avx512vnni {
extern const DepthwiseLoops kDepthwiseLoops;
}
#endif

namespace {

constexpr int64_t kFewChannels = 4;            // up to here a dense kernel with zeros is faster
constexpr int64_t kProductsPerCall = 1 << 16;  // less is not worth a second thread
constexpr int64_t kStrip = 4;                  // rows of output pixels
constexpr int64_t kSide = 4;                   // blocks; neighbours share cache lines where channels are not aligned

const DepthwiseLoops &depthwise_loops() {
#if defined(KVANT_HAVE_X86)
  if (isa() == Isa::kAvx512Vnni) return avx512vnni::kDepthwiseLoops;
#if defined(KVANT_HAVE_AVXVNNI)
  if (isa() == Isa::kAvxVnni) return avxvnni::kDepthwiseLoops;
#endif
  if (isa() == Isa::kAvx2) return avx2::kDepthwiseLoops;
#endif
  return portable::kDepthwiseLoops;
}

// Which tap each place of the groups takes; -1: none, the weight is zero.
using Order = std::vector<int64_t>;

// Row after row of the kernel, filled up to whole groups at the end.
Order order_of(const kvant_conv_layer &layer, int64_t group) {
  Order order;
  for (int64_t i = 0; i < layer.kernel[0] * layer.kernel[1]; ++i) order.push_back(i);
  while (static_cast<int64_t>(order.size()) % group != 0) order.push_back(-1);
  return order;
}

// Column after column, each filled up to 4 taps.
Order order_by_columns(const kvant_conv_layer &layer) {
  Order order;
  for (int64_t i = 0; i < layer.kernel[1] * 4; ++i) {
    order.push_back(i % 4 < layer.kernel[0] ? i % 4 * layer.kernel[1] + i / 4 : -1);
  }
  return order;
}

// How some of the blocks are computed.
struct Plan {
  DepthwiseFunction any;
  DepthwiseSlide slide;  // null: `any`
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

// No sum times its multiplier is larger.
double largest_product(const kvant_conv_layer &layer, int64_t channel) {
  const int64_t taps = layer.kernel[0] * layer.kernel[1];
  const double most = layer.dtype == KVANT_UINT8 ? std::max(layer.zero_point, 255 - layer.zero_point) : 32768;
  double sum = std::abs(static_cast<double>(layer.bias[channel]));
  for (int64_t i = 0; i < taps; ++i) sum += most * std::abs(static_cast<double>(layer.values[channel * taps + i]));
  return sum * std::abs(static_cast<double>(layer.multipliers[channel]));
}

class Depthwise : public Algorithm {
 public:
  explicit Depthwise(const kvant_conv_layer &layer);

  const char *name() const override { return "depthwise"; }
  int64_t bytes() const override { return weights_.bytes() + bias_.bytes() + multipliers_.bytes(); }
  Format format() const override { return Format::kRaw; }
  bool pads_itself() const override { return slides() && slack() == 0; }
  Reach reach(const int64_t output_size[2]) const override;
  int32_t run(const Job &job) const override;
  bool runs_lines() const override { return true; }
  int32_t run_lines(const Job &job, int64_t begin, int64_t end) const override;

 private:
  bool slides() const { return rest_.slide != nullptr; }
  int64_t slack() const { return blocks_.back().plan->width() - blocks_.back().channels; }
  Plan plan(const DepthwiseKind &kind, int64_t vectors) const;
  void choose(bool bytes);
  void cut_blocks();
  void pack(const kvant_conv_layer &layer, const Block &block);
  void pack_lane(const kvant_conv_layer &layer, const Block &block, int64_t lane, int64_t channel);
  std::vector<int64_t> offsets(const Padded &x, const Plan &plan) const;
  DepthwiseWork work_of(const Job &job, const Block &block) const;
  void run_any(const Job &job, const Block &block, const int64_t *offsets, int64_t line) const;
  void run_slide(const Job &job, const Block &block, int64_t line) const;
  void run_strip(const Job &job, const int64_t *whole, const int64_t *rest, int64_t begin, int64_t end) const;

  kvant_conv_layer layer_;  // pointers are null
  Plan whole_, rest_;       // `rest_` for a last block that is much narrower
  std::vector<Block> blocks_;
  bool bounded_ = true;
  uint8_t padding_[64];  // a row of it, of any length: the same pixel again and again
  AlignedArray<uint8_t> weights_;
  AlignedArray<int32_t> bias_;
  AlignedArray<float> multipliers_;
};

Depthwise::Depthwise(const kvant_conv_layer &layer) : layer_(without_pointers(layer)) {
  const int64_t count = layer.outputs * layer.kernel[0] * layer.kernel[1];
  const bool narrow = fits_int8(layer.values, count);
  std::memset(padding_, layer.zero_point, sizeof padding_);
  choose(narrow && layer.dtype == KVANT_UINT8 && depthwise_loops().bytes.any != nullptr);
  cut_blocks();
  for (const Block &block : blocks_) pack(layer, block);
}

Plan Depthwise::plan(const DepthwiseKind &kind, int64_t vectors) const {
  const bool three = layer_.kernel[1] == 3 && layer_.kernel[0] <= 3 && layer_.dilations[1] == 1;
  if (!three || layer_.strides[1] > 2) return {kind.any, nullptr, vectors, order_of(layer_, vectors)};
  return {kind.any, kind.slide[layer_.strides[1] - 1], vectors, order_by_columns(layer_)};
}

void Depthwise::choose(bool bytes) {
  const DepthwiseLoops &loops = depthwise_loops();
  rest_ = plan(layer_.dtype == KVANT_UINT8 ? loops.shorts_of_uint8 : loops.shorts, 2);
  whole_ = bytes ? plan(loops.bytes, 4) : rest_;
}

void Depthwise::cut_blocks() {
  int64_t weights = 0, lanes = 0;
  for (int64_t first = 0; first < layer_.channels;) {
    const int64_t left = layer_.channels - first;
    const bool narrow = left <= rest_.width() || (slides() && layer_.channels < whole_.width());
    const Plan &plan = narrow ? rest_ : whole_;
    // A last block that is not full begins earlier, if it can: then it is full, and nothing behind it is read.
    const int64_t begin = std::max<int64_t>(0, std::min(first, layer_.channels - plan.width()));
    blocks_.push_back({&plan, begin, std::min(layer_.channels - begin, plan.width()), weights, lanes});
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
  bounded_ = bounded_ && largest_product(layer, channel) < 2.0e9;
}

Reach Depthwise::reach(const int64_t output_size[2]) const {
  return reach_of_taps(layer_, output_size, slack());
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

DepthwiseWork Depthwise::work_of(const Job &job, const Block &block) const {
  DepthwiseWork work{};
  work.count = job.output_size[1];
  work.groups = block.plan->groups();
  work.weights = weights_.data() + block.weights;
  work.bias = bias_.data() + block.lanes;
  work.multipliers = multipliers_.data() + block.lanes;
  work.channels = block.channels;
  work.bounded = bounded_;
  work.target = &job.target;
  work.y_stride = job.y_stride * size_of(job.target.dtype);
  return work;
}

void Depthwise::run_any(const Job &job, const Block &block, const int64_t *offsets, int64_t line) const {
  const int64_t image = line / job.output_size[0], row = line % job.output_size[0];
  const int64_t input = size_of(layer_.dtype);
  DepthwiseWork work = work_of(job, block);
  work.column = job.x.column * layer_.strides[1] * input;
  work.x = job.x.data + (image * job.x.image + row * layer_.strides[0] * job.x.row + block.first_channel) * input;
  work.y = job.y + line * work.count * work.y_stride + block.first_channel * size_of(job.target.dtype);
  work.offsets = offsets;
  block.plan->any(work);
}

void Depthwise::run_slide(const Job &job, const Block &block, int64_t line) const {
  const int64_t image = line / job.output_size[0], first = line % job.output_size[0] * layer_.strides[0] - job.pads[0];
  const int64_t input = size_of(layer_.dtype);
  DepthwiseWork work = work_of(job, block);
  work.y = job.y + line * work.count * work.y_stride + block.first_channel * size_of(job.target.dtype);
  DepthwiseRows rows{};
  rows.pixels = job.size[1];
  rows.pad = job.pads[1];
  rows.zero_point = layer_.zero_point;
  rows.ahead = job.x.row * layer_.strides[0] * input;
  rows.y_ahead = work.count * work.y_stride;
  for (int64_t t = 0; t < 3; ++t) {  // rows without a tap: any, as weights are zero there
    const int64_t row = first + std::min(t, layer_.kernel[0] - 1) * layer_.dilations[0];
    const bool inside = row >= 0 && row < job.size[0];
    rows.steps[t] = inside ? job.x.column * input : 0;
    rows.x[t] = inside ? job.x.data + (image * job.x.image + row * job.x.row + block.first_channel) * input : padding_;
  }
  if (rows.steps[0] == rows.steps[1] && rows.steps[0] == rows.steps[2]) rows.step = rows.steps[0];
  block.plan->slide(work, rows);
}

// Rows of a few blocks of channels, then the next blocks.
void Depthwise::run_strip(const Job &job, const int64_t *whole, const int64_t *rest, int64_t begin, int64_t end) const {
  const int64_t count = static_cast<int64_t>(blocks_.size());
  for (int64_t first = 0; first < count; first += kSide) {
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t b = first; b < std::min(count, first + kSide); ++b) {
        const Block &block = blocks_[static_cast<size_t>(b)];
        if (slides()) {
          run_slide(job, block, line);
        } else {
          run_any(job, block, block.plan == &whole_ ? whole : rest, line);
        }
      }
    }
  }
}

int32_t Depthwise::run_lines(const Job &job, int64_t begin, int64_t end) const {
  std::vector<int64_t> whole, rest;
  if (!slides()) {
    whole = offsets(job.x, whole_);
    rest = offsets(job.x, rest_);
  }
  for (int64_t strip = begin; strip < end; strip += kStrip) {
    run_strip(job, whole.data(), rest.data(), strip, std::min(end, strip + kStrip));
  }
  return KVANT_OK;
}

int32_t Depthwise::run(const Job &job) const {
  const int64_t products = job.output_size[1] * layer_.channels * layer_.kernel[0] * layer_.kernel[1];
  const int64_t lines = job.batch * job.output_size[0];
  const int64_t share = std::min(kStrip, divide_up(lines, 2 * num_threads()));
  const int64_t grain = std::max(divide_up(kProductsPerCall, products), share);
  return parallel(lines, grain, [&](int64_t begin, int64_t end) { return run_lines(job, begin, end); });
}

}  // namespace

std::unique_ptr<Algorithm> make_depthwise(const kvant_conv_layer &layer) {
  const bool applies = !layer.transposed && layer.groups == layer.channels && layer.outputs == layer.channels;
  if (!applies || layer.sums.wide || layer.channels <= kFewChannels) return nullptr;
  return std::make_unique<Depthwise>(layer);
}

}  // namespace kvant
