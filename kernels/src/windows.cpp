// Pooling and interpolation over (outer, height, width, inner).
#include <algorithm>
#include <cstring>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kGrain = 16384;

bool sound(const kvant_windows *windows, int64_t size, bool empty_allowed) {
  if (windows->count < 0 || windows->step < 1) return false;
  for (int64_t i = 0; i < windows->count; ++i) {
    const int64_t start = windows->start[i], stop = windows->stop[i];
    if (start < 0 || stop > size || (empty_allowed ? start > stop : start >= stop)) return false;
  }
  return true;
}

bool sound(const kvant_taps *taps, int64_t size) {
  if (taps->count < 0 || taps->one < 1 || taps->one > 2048) return false;
  for (int64_t i = 0; i < taps->count; ++i) {
    if (taps->lower[i] < 0 || taps->lower[i] >= size || taps->upper[i] < 0 || taps->upper[i] >= size) return false;
    if (taps->weight[i] < 0 || taps->weight[i] > taps->one) return false;
  }
  return true;
}

// One row of interpolated columns: (one - weight) * x[lower] + weight * x[upper].
template <typename Sum>
void blend_columns(const kvant_taps *taps, int64_t inner, const int32_t *row, Sum *out) {
  for (int64_t i = 0; i < taps->count; ++i, out += inner) {
    const int32_t *lower = row + taps->lower[i] * inner, *upper = row + taps->upper[i] * inner;
    // 16 bits times 11: both products and their sum fit 32.
    const int32_t weight = static_cast<int32_t>(taps->weight[i]), rest = static_cast<int32_t>(taps->one) - weight;
    for (int64_t c = 0; c < inner; ++c) out[c] = lower[c] * rest + upper[c] * weight;
  }
}

// Interpolated columns of the two input rows that an output row lies between; a row that stays is not done twice.
template <typename Sum>
struct RowPair {
  Sum *sums[2];
  int64_t have[2] = {-1, -1};

  const Sum *get(int64_t row, int64_t other, const kvant_taps *columns, int64_t inner, const uint8_t *image,
                     const kvant_source *x, int64_t width, int32_t *centred) {
    for (int side = 0; side < 2; ++side) {
      if (have[side] == row) return sums[side];
    }
    const int side = have[0] == other ? 1 : 0;
    const int64_t count = width * inner;
    loops().centre32(count, image + row * count * size_of(x->dtype), x->dtype, 1, x->zero_point, centred);
    blend_columns(columns, inner, centred, sums[side]);
    have[side] = row;
    return sums[side];
  }
};

void blend(int64_t count, const int32_t *lower, const int32_t *upper, int64_t weight, int64_t one, int32_t *out) {
  loops().blend32(count, lower, upper, weight, one, out);
}

void blend(int64_t count, const int64_t *lower, const int64_t *upper, int64_t weight, int64_t one, int64_t *out) {
  loops().blend64(count, lower, upper, weight, one, out);
}

// Of checked arguments. Sum: bytes need 8 bits and twice 11, 16-bit integers more than 32 bits.
template <typename Sum>
int32_t resize(int64_t outer, int64_t height, int64_t width, int64_t inner, const kvant_taps *rows,
               const kvant_taps *columns, const kvant_source *x, float multiplier, const kvant_target *target, void *y) {
  const int64_t count = columns->count * inner, grain = divide_up(kGrain, std::max<int64_t>(1, count));
  return parallel(outer * rows->count, grain, [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *centred = scratch_array<int32_t>(0, width * inner);
    Sum *buffers = scratch_array<Sum>(1, 3 * count);
    KVANT_REQUIRE(centred && buffers, KVANT_NO_MEMORY);
    RowPair<Sum> pair{{buffers, buffers + count}};
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / rows->count, i = item % rows->count;
      if (i == 0) pair.have[0] = pair.have[1] = -1;
      const uint8_t *from = static_cast<const uint8_t *>(x->data) + image * height * width * inner * size_of(x->dtype);
      const int64_t low = rows->lower[i], high = rows->upper[i];
      const Sum *lower = pair.get(low, high, columns, inner, from, x, width, centred);
      const Sum *upper = pair.get(high, low, columns, inner, from, x, width, centred);
      blend(count, lower, upper, rows->weight[i], rows->one, buffers + 2 * count);
      settle(count, buffers + 2 * count, multiplier, target,
             static_cast<uint8_t *>(y) + item * count * size_of(target->dtype));
    }
    return KVANT_OK;
  });
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_max_pool(int64_t outer, int64_t height, int64_t width, int64_t inner,
                                  const kvant_windows *rows, const kvant_windows *columns, const kvant_source *x,
                                  void *y) {
  KVANT_REQUIRE(rows && columns && x && x->data && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rows->start && rows->stop && columns->start && columns->stop, KVANT_NULL_POINTER);
  int64_t given, written;
  KVANT_REQUIRE(product({outer, height, width, inner, 8}, &given), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({outer, rows->count, columns->count, inner, 8}, &written), KVANT_OVERFLOW);
  KVANT_REQUIRE(valid(x) && sound(rows, height, false) && sound(columns, width, false), KVANT_BAD_ARGUMENT);
  const int64_t element = size_of(x->dtype), row_size = width * inner;
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, row_size * 2));
  return parallel(outer * rows->count, grain, [=](int64_t begin, int64_t end) -> int32_t {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / rows->count, i = item % rows->count;
      const uint8_t *from = static_cast<const uint8_t *>(x->data) + image * height * row_size * element;
      const WindowRow windows{divide_up(rows->stop[i] - rows->start[i], rows->step), rows->step * row_size, columns, inner};
      uint8_t *to = static_cast<uint8_t *>(y) + item * columns->count * inner * element;
      loops().max_row(windows, x->dtype, from + rows->start[i] * row_size * element, to);
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_mean_pool(int64_t outer, int64_t height, int64_t width, int64_t inner,
                                   const kvant_windows *rows, const kvant_windows *columns, const kvant_source *x,
                                   const float *multipliers, const kvant_target *target, void *y) {
  KVANT_REQUIRE(rows && columns && x && x->data && multipliers && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rows->start && rows->stop && columns->start && columns->stop, KVANT_NULL_POINTER);
  int64_t given, written;
  KVANT_REQUIRE(product({outer, height, width, inner, 8}, &given), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({outer, rows->count, columns->count, inner, 8}, &written), KVANT_OVERFLOW);
  KVANT_REQUIRE(valid(x) && valid(target) && sound(rows, height, true) && sound(columns, width, true),
                KVANT_BAD_ARGUMENT);
  // A column's sum of a window stays within int32 up to this height.
  KVANT_REQUIRE(height <= 65535, KVANT_BAD_ARGUMENT);
  const int64_t element = size_of(x->dtype), row_size = width * inner;
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, row_size * 2));
  return parallel(outer * rows->count, grain, [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *column_sums = scratch_array<int32_t>(0, row_size);
    int64_t *sums = scratch_array<int64_t>(1, inner);
    KVANT_REQUIRE(column_sums && sums, KVANT_NO_MEMORY);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / rows->count, i = item % rows->count;
      const uint8_t *from = static_cast<const uint8_t *>(x->data) + image * height * row_size * element;
      std::fill(column_sums, column_sums + row_size, 0);
      for (int64_t row = rows->start[i]; row < rows->stop[i]; row += rows->step) {
        loops().accumulate32(row_size, from + row * row_size * element, x->dtype, x->zero_point, column_sums);
      }
      uint8_t *to = static_cast<uint8_t *>(y) + item * columns->count * inner * size_of(target->dtype);
      for (int64_t k = 0; k < columns->count; ++k, to += inner * size_of(target->dtype)) {
        std::fill(sums, sums + inner, 0);
        for (int64_t j = columns->start[k]; j < columns->stop[k]; j += columns->step) {
          loops().widen_add(inner, column_sums + j * inner, sums);
        }
        loops().settle64(inner, sums, multipliers[i * columns->count + k], target, to);
      }
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_resize(int64_t outer, int64_t height, int64_t width, int64_t inner, const kvant_taps *rows,
                                const kvant_taps *columns, const kvant_source *x, float multiplier,
                                const kvant_target *target, void *y) {
  KVANT_REQUIRE(rows && columns && x && x->data && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rows->lower && rows->upper && rows->weight, KVANT_NULL_POINTER);
  KVANT_REQUIRE(columns->lower && columns->upper && columns->weight, KVANT_NULL_POINTER);
  int64_t given, written;
  KVANT_REQUIRE(product({outer, height, width, inner, 8}, &given), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({outer, rows->count, columns->count, inner, 8}, &written), KVANT_OVERFLOW);
  KVANT_REQUIRE(valid(x) && valid(target) && sound(rows, height) && sound(columns, width), KVANT_BAD_ARGUMENT);
  const auto function = x->dtype == KVANT_INT16 ? resize<int64_t> : resize<int32_t>;
  return function(outer, height, width, inner, rows, columns, x, multiplier, target, y);
}
