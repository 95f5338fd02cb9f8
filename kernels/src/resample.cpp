// Pictures at another size.
#include <algorithm>

#include "common.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;  // bytes that one thread should read at least
constexpr float kRounder = 12582912.0f;       // 1.5 * 2^23: adding and subtracting it rounds half to even

// A row of results from one of cells; both have room for one value more. `kTerms` is how many terms there are, 0 for any.
template <int kChannels, int kTerms>
void across(const kvant_filter &columns, const float *row, float *out) {
  const int64_t terms = kTerms == 0 ? columns.terms : kTerms;
  for (int64_t i = 0; i < columns.count; ++i) {
    const float *from = row + columns.first[i] * kChannels, *weights = columns.weights + i * terms;
    if constexpr (kChannels == 3) {
      Four sum = {};
      for (int64_t k = 0; k < terms; ++k) sum += weights[k] * *reinterpret_cast<const Four *>(from + 3 * k);
      *reinterpret_cast<Four *>(out + 3 * i) = sum;  // the next result takes the fourth value's place
    } else {
      float sum = 0.0f;
      for (int64_t k = 0; k < terms; ++k) sum += weights[k] * from[k];
      out[i] = sum;
    }
  }
}

// The same, with the counts of terms that are common: those of pictures that shrink by a factor of up to three.
template <int kChannels>
void across(const kvant_filter &columns, const float *row, float *out) {
  if (columns.terms == 3) across<kChannels, 3>(columns, row, out);
  else if (columns.terms == 4) across<kChannels, 4>(columns, row, out);
  else across<kChannels, 0>(columns, row, out);
}

struct Resampling {
  int64_t width, channels;
  const uint8_t *x;
  int64_t x_pitch;
  const kvant_filter &rows, &columns;
  uint8_t *y;
  int64_t y_pitch;

  int32_t run(int64_t begin, int64_t end) const {
    const int64_t count = columns.count * channels;
    float *cells = scratch_array<float>(0, width * channels + 1);
    float *summed = scratch_array<float>(1, count + 1);
    float *total = scratch_array<float>(2, count);
    KVANT_REQUIRE(cells && summed && total, KVANT_NO_MEMORY);
    cells[width * channels] = 0.0f;
    int64_t there = -1;  // the row of x that is in `summed`: neighbours of y share some
    for (int64_t i = begin; i < end; ++i) {
      std::fill(total, total + count, 0.0f);
      for (int64_t k = 0; k < rows.terms; ++k) {
        const float weight = rows.weights[i * rows.terms + k];
        if (weight == 0.0f) continue;
        if (there != rows.first[i] + k) read(there = rows.first[i] + k, cells, summed);
        add(count, weight, summed, total);
      }
      store(count, total, y + i * y_pitch);
    }
    return KVANT_OK;
  }

 private:
  void read(int64_t row, float *__restrict cells, float *summed) const {
    const uint8_t *from = x + row * x_pitch;
    for (int64_t j = 0; j < width * channels; ++j) cells[j] = static_cast<float>(from[j]);
    if (channels == 3) across<3>(columns, cells, summed);
    else across<1>(columns, cells, summed);
  }

  static void add(int64_t count, float weight, const float *__restrict from, float *__restrict to) {
    for (int64_t j = 0; j < count; ++j) to[j] += weight * from[j];
  }

  static void store(int64_t count, const float *__restrict from, uint8_t *__restrict to) {
    for (int64_t j = 0; j < count; ++j) {
      float value = from[j] > 0.0f ? from[j] : 0.0f;
      value = value < 255.0f ? value : 255.0f;
      to[j] = static_cast<uint8_t>(static_cast<int32_t>((value + kRounder) - kRounder));
    }
  }
};

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_resample(int64_t height, int64_t width, int64_t channels, const uint8_t *x, int64_t x_pitch,
                                  const kvant_filter *rows, const kvant_filter *columns, uint8_t *y, int64_t y_pitch) {
  KVANT_REQUIRE(x && rows && columns && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(height >= 1 && width >= 1 && (channels == 1 || channels == 3), KVANT_BAD_ARGUMENT);
  int32_t status = check_filter(*rows, height);
  if (status == KVANT_OK) status = check_filter(*columns, width);
  KVANT_REQUIRE(status == KVANT_OK, status);
  int64_t bytes;
  KVANT_REQUIRE(product({width, channels, 16}, &bytes) && product({columns->count, channels, 16}, &bytes), KVANT_OVERFLOW);
  KVANT_REQUIRE(x_pitch >= width * channels && y_pitch >= columns->count * channels, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(product({height, x_pitch}, &bytes) && product({rows->count, y_pitch}, &bytes), KVANT_OVERFLOW);
  const Resampling job{width, channels, x, x_pitch, *rows, *columns, y, y_pitch};
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, width * channels * height / std::max<int64_t>(1, rows->count)));
  return parallel(rows->count, grain, [&](int64_t begin, int64_t end) { return job.run(begin, end); });
}
