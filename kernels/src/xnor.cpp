// Convolution of signs by bit operations: weights are -1 and 1, inputs -1, 0 and 1 (0 is padding, mostly), held as 0, 1 and
// 2 with a zero point of 1. Of each input channel one bit says whether it is 1, another whether it counts at all. A product
// is -1 where a counting input's bit differs from the weight's:
//
//     sum = (inputs that count) - 2 * popcount((input ^ weight) & counts)
#include <algorithm>
#include <memory>

#include "algorithm.h"
#include "common.h"
#include "loops.h"
#include "packing.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kWord = 64;
constexpr int64_t kStretch = 32;  // output pixels of one row that are computed together

// How many bits of each output's weights differ from the input's where that counts. All have `words` words.
using CountFunction = void (*)(int64_t outputs, int64_t words, const uint64_t *input, const uint64_t *counts,
                               const uint64_t *weights, int64_t *wrong);

inline __attribute__((always_inline)) void count_body(int64_t outputs, int64_t words, const uint64_t *input,
                                                      const uint64_t *counts, const uint64_t *weights,
                                                      int64_t *wrong) {
  for (int64_t o = 0; o < outputs; ++o) {
    const uint64_t *own = weights + o * words;
    int64_t total = 0;
    for (int64_t i = 0; i < words; ++i) total += __builtin_popcountll((input[i] ^ own[i]) & counts[i]);
    wrong[o] = total;
  }
}

void count_portable(int64_t outputs, int64_t words, const uint64_t *input, const uint64_t *counts,
                    const uint64_t *weights, int64_t *wrong) {
  count_body(outputs, words, input, counts, weights, wrong);
}

#if defined(KVANT_HAVE_X86)
__attribute__((target("popcnt"))) void count_popcnt(int64_t outputs, int64_t words, const uint64_t *input,
                                                    const uint64_t *counts, const uint64_t *weights,
                                                    int64_t *wrong) {
  count_body(outputs, words, input, counts, weights, wrong);
}
#endif

CountFunction count_function() {
#if defined(KVANT_HAVE_X86)
  if (isa() != Isa::kPortable) return count_popcnt;  // every processor with AVX2 has it
#endif
  return count_portable;
}

class Xnor : public Algorithm {
 public:
  explicit Xnor(const kvant_conv_layer &layer);

  const char *name() const override { return "xnor"; }
  int64_t bytes() const override { return weights_.bytes() + bias_.bytes() + multipliers_.bytes(); }
  Format format() const override { return Format::kRaw; }
  Reach reach(const int64_t output_size[2]) const override { return reach_of_taps(layer_, output_size, 0); }
  int32_t run(const Job &job) const override;

 private:
  int64_t depth() const { return layer_.channels / layer_.groups; }
  int64_t pixel_words() const { return layer_.groups * words_; }
  int64_t columns_of(int64_t pixels) const {
    return (pixels - 1) * layer_.strides[1] + (layer_.kernel[1] - 1) * layer_.dilations[1] + 1;
  }
  void pack_pixel(const uint8_t *pixel, uint64_t *input, uint64_t *counts) const;
  int32_t run_stretch(const Job &job, int64_t line, int64_t first, int64_t count) const;
  void run_pixel(const uint64_t *input, const uint64_t *counts, int64_t width, int64_t column, uint64_t *patch,
                 int64_t *sums) const;

  kvant_conv_layer layer_;  // pointers are null
  int64_t taps_, words_;    // words of one group of a pixel
  AlignedArray<uint64_t> weights_;  // [output][tap][word]
  AlignedArray<int64_t> bias_;
  AlignedArray<float> multipliers_;
};

Xnor::Xnor(const kvant_conv_layer &layer)
    : layer_(without_pointers(layer)), taps_(layer.kernel[0] * layer.kernel[1]), words_(divide_up(depth(), kWord)),
      weights_(layer.outputs * taps_ * words_), bias_(layer.outputs), multipliers_(layer.outputs) {
  for (int64_t o = 0; o < layer.outputs; ++o) {
    for (int64_t c = 0; c < depth(); ++c) {
      for (int64_t tap = 0; tap < taps_; ++tap) {
        const uint64_t bit = layer.values[(o * depth() + c) * taps_ + tap] > 0;
        weights_.data()[(o * taps_ + tap) * words_ + c / kWord] |= bit << (c % kWord);
      }
    }
  }
  std::copy_n(layer.bias, layer.outputs, bias_.data());
  std::copy_n(layer.multipliers, layer.outputs, multipliers_.data());
}

void Xnor::pack_pixel(const uint8_t *pixel, uint64_t *input, uint64_t *counts) const {
  for (int64_t g = 0; g < layer_.groups; ++g) {
    for (int64_t w = 0; w < words_; ++w) {
      const uint8_t *from = pixel + g * depth() + w * kWord;
      const int64_t channels = std::min(kWord, depth() - w * kWord);
      uint64_t positive = 0, counting = 0;
      for (int64_t c = 0; c < channels; ++c) {
        positive |= static_cast<uint64_t>(from[c] > 1) << c;
        counting |= static_cast<uint64_t>(from[c] != 1) << c;
      }
      input[g * words_ + w] = positive;
      counts[g * words_ + w] = counting;
    }
  }
}

// `input` and `counts` are lines of the kernel of `width` packed pixels; the output pixel sees them from `column` on.
void Xnor::run_pixel(const uint64_t *input, const uint64_t *counts, int64_t width, int64_t column, uint64_t *patch,
                     int64_t *sums) const {
  const int64_t outputs = layer_.outputs / layer_.groups, words = taps_ * words_;
  uint64_t *own = patch, *own_counts = patch + words;
  for (int64_t g = 0; g < layer_.groups; ++g) {
    int64_t counting = 0;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      const int64_t at = column + tap % layer_.kernel[1] * layer_.dilations[1];
      const int64_t from = (tap / layer_.kernel[1] * width + at) * pixel_words() + g * words_;
      for (int64_t w = 0; w < words_; ++w) {
        own[tap * words_ + w] = input[from + w];
        own_counts[tap * words_ + w] = counts[from + w];
        counting += __builtin_popcountll(counts[from + w]);
      }
    }
    int64_t *found = sums + g * outputs;
    count_function()(outputs, words, own, own_counts, weights_.data() + g * outputs * words, found);
    for (int64_t o = 0; o < outputs; ++o) found[o] = bias_.data()[g * outputs + o] + counting - 2 * found[o];
  }
}

// Output pixels `first` to `first + count` of one line of all images.
int32_t Xnor::run_stretch(const Job &job, int64_t line, int64_t first, int64_t count) const {
  const int64_t width = columns_of(count), words = layer_.kernel[0] * width * pixel_words();
  uint64_t *input = scratch_array<uint64_t>(0, 2 * words), *patch = scratch_array<uint64_t>(1, 2 * taps_ * words_);
  int64_t *sums = scratch_array<int64_t>(2, layer_.outputs);
  KVANT_REQUIRE(input && patch && sums, KVANT_NO_MEMORY);
  const int64_t image = line / job.output_size[0], row = line % job.output_size[0] * layer_.strides[0];
  for (int64_t k = 0; k < layer_.kernel[0]; ++k) {
    const uint8_t *pixels = job.x.data + image * job.x.image + (row + k * layer_.dilations[0]) * job.x.row +
                            first * layer_.strides[1] * job.x.column;
    for (int64_t j = 0; j < width; ++j) {
      const int64_t at = (k * width + j) * pixel_words();
      pack_pixel(pixels + j * job.x.column, input + at, input + words + at);
    }
  }
  for (int64_t p = 0; p < count; ++p) {
    run_pixel(input, input + words, width, p * layer_.strides[1], patch, sums);
    uint8_t *y = job.y + (line * job.output_size[1] + first + p) * job.y_stride * size_of(job.target.dtype);
    loops().settle64_each(layer_.outputs, sums, multipliers_.data(), &job.target, y);
  }
  return KVANT_OK;
}

int32_t Xnor::run(const Job &job) const {
  const int64_t stretches = divide_up(job.output_size[1], kStretch);
  const int64_t lines = job.batch * job.output_size[0];
  return parallel(lines * stretches, 1, [&](int64_t begin, int64_t end) -> int32_t {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % stretches * kStretch;
      const int32_t status =
          run_stretch(job, item / stretches, first, std::min(kStretch, job.output_size[1] - first));
      KVANT_REQUIRE(status == KVANT_OK, status);
    }
    return KVANT_OK;
  });
}

}  // namespace

int64_t xnor_bytes(const kvant_conv_layer &layer) {
  if (layer.dtype != KVANT_UINT8 || layer.zero_point != 1 || layer.transposed) return -1;
  const int64_t words = divide_up(layer.channels / layer.groups, kWord);
  return layer.outputs * layer.kernel[0] * layer.kernel[1] * words * static_cast<int64_t>(sizeof(uint64_t));
}

std::unique_ptr<Algorithm> make_xnor(const kvant_conv_layer &layer) {
  const int64_t count = layer.outputs * (layer.channels / layer.groups) * layer.kernel[0] * layer.kernel[1];
  const auto is_sign = [](int16_t value) { return value == 1 || value == -1; };
  if (xnor_bytes(layer) < 0 || !std::all_of(layer.values, layer.values + count, is_sign)) return nullptr;
  return std::make_unique<Xnor>(layer);
}

}  // namespace kvant
