// Reductions, softmax and norms along the middle of (outer, size, inner).
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

__extension__ typedef __int128 Int128;

constexpr int64_t kGrain = 16384;
// So many 16-bit integers surely sum up within int32.
constexpr int64_t kNarrowTerms = 65535;
// So many squares of centred bytes surely do.
constexpr int64_t kNarrowSquares = 32768;
// Lines of a norm whose size times an integer, less their sum, surely fits int32: centred bytes, 16-bit integers.
constexpr int64_t kMostNarrowBytes = int64_t{1} << 22, kMostNarrowShorts = 32767;

const uint8_t *at(const kvant_source *x, int64_t index) {
  return static_cast<const uint8_t *>(x->data) + index * size_of(x->dtype);
}

// Shapes that fit the address space, or a status.
int32_t check(int64_t outer, int64_t size, int64_t inner, const kvant_source *x) {
  int64_t count;
  KVANT_REQUIRE(x->data, KVANT_NULL_POINTER);
  KVANT_REQUIRE(size >= 1 && valid(x), KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(product({outer, size, inner, 8}, &count), KVANT_OVERFLOW);
  return KVANT_OK;
}

int64_t grain_of(int64_t size, int64_t inner) { return divide_up(kGrain, std::max<int64_t>(1, size * inner)); }

template <typename T>
int64_t sum_of(int64_t count, const T *x) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i];
  return sum;
}

int64_t sum_row(int64_t count, const kvant_source *x, int64_t first) {
  const void *from = at(x, first);
  if (x->dtype == KVANT_UINT8) return sum_of(count, static_cast<const uint8_t *>(from));
  if (x->dtype == KVANT_INT8) return sum_of(count, static_cast<const int8_t *>(from));
  return sum_of(count, static_cast<const int16_t *>(from));
}

// sums[j] = sum over i of x[first + i * inner + j] - zero_point.
void sum_columns(int64_t size, int64_t inner, const kvant_source *x, int64_t first, int32_t *narrow, int64_t *sums) {
  std::fill(sums, sums + inner, 0);
  for (int64_t begin = 0; begin < size; begin += kNarrowTerms) {
    std::fill(narrow, narrow + inner, 0);
    for (int64_t i = begin; i < std::min(size, begin + kNarrowTerms); ++i) {
      loops().accumulate32(inner, at(x, first + i * inner), x->dtype, x->zero_point, narrow);
    }
    loops().widen_add(inner, narrow, sums);
  }
}

template <typename T>
T extreme_of(bool largest, int64_t count, const T *x) {
  T best = x[0];
  for (int64_t i = 1; i < count; ++i) best = largest ? (best > x[i] ? best : x[i]) : (best < x[i] ? best : x[i]);
  return best;
}

template <typename T>
void extreme_rows(bool largest, int64_t begin, int64_t end, int64_t size, const void *x, void *y) {
  for (int64_t row = begin; row < end; ++row) {
    static_cast<T *>(y)[row] = extreme_of(largest, size, static_cast<const T *>(x) + row * size);
  }
}

template <typename T>
void scatter(int64_t count, const void *from, int64_t stride, void *to) {
  for (int64_t i = 0; i < count; ++i) static_cast<T *>(to)[i * stride] = static_cast<const T *>(from)[i];
}

// scale / n / sqrt(variance + eps): float64 operations in the order of docs/numerics.md, then one rounding to float32.
float norm_factor(const kvant_norm *norm, int64_t a, int64_t b) {
  const double n = static_cast<double>(norm->size);
  const Int128 numerator = static_cast<Int128>(norm->size) * b - static_cast<Int128>(a) * a;
  const double variance = static_cast<double>(numerator) * (norm->scale * norm->scale / (n * n)) + norm->eps;
  if (variance == 0.0) return 0.0f;
  return static_cast<float>(std::min(norm->scale / n * (1.0 / std::sqrt(variance)), static_cast<double>(FLT_MAX)));
}

void normalize_row(const kvant_norm *norm, const kvant_source *x, int64_t row, const float *gamma, const float *beta,
                   const kvant_target *target, uint8_t *y, int32_t *q, float *values) {
  const int64_t n = norm->size, first = row % norm->groups * (n / norm->inner);
  loops().centre32(n, at(x, row * n), x->dtype, 1, x->zero_point, q);
  const bool bytes = x->dtype != KVANT_INT16;
  Moments moments{};
  for (int64_t i = 0; i < n; i += kNarrowSquares) {
    loops().add_moments(std::min(kNarrowSquares, n - i), q + i, bytes, &moments);
  }
  const float factor = norm_factor(norm, moments.sum, moments.squares);
  const bool narrow = n <= (bytes ? kMostNarrowBytes : kMostNarrowShorts);
  const Line line{n, norm->inner, moments.sum, factor, norm->output_scale, narrow};
  loops().normalize(line, q, gamma + first, beta + first, values);
  loops().settle_float(n, values, target, y + row * n * size_of(target->dtype));
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_sum(int64_t outer, int64_t size, int64_t inner, const kvant_source *x, float multiplier,
                             const kvant_target *target, void *y) {
  KVANT_REQUIRE(x && target && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner, x);
  KVANT_REQUIRE(status == KVANT_OK, status);
  KVANT_REQUIRE(valid(target), KVANT_BAD_ARGUMENT);
  return parallel(outer, grain_of(size, inner), [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *narrow = scratch_array<int32_t>(0, inner);
    int64_t *sums = scratch_array<int64_t>(1, inner);
    KVANT_REQUIRE(narrow && sums, KVANT_NO_MEMORY);
    for (int64_t row = begin; row < end; ++row) {
      if (inner == 1) {
        sums[0] = sum_row(size, x, row * size) - size * x->zero_point;
      } else {
        sum_columns(size, inner, x, row * size * inner, narrow, sums);
      }
      loops().settle64(inner, sums, multiplier, target,
                       static_cast<uint8_t *>(y) + row * inner * size_of(target->dtype));
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_extreme(int32_t function, int64_t outer, int64_t size, int64_t inner, const kvant_source *x,
                                 void *y) {
  KVANT_REQUIRE(x && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(function == KVANT_MIN || function == KVANT_MAX, KVANT_BAD_ARGUMENT);
  const int32_t status = check(outer, size, inner, x);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const bool largest = function == KVANT_MAX;
  return parallel(outer, grain_of(size, inner), [=](int64_t begin, int64_t end) -> int32_t {
    if (inner == 1) {
      const auto rows = x->dtype == KVANT_UINT8  ? extreme_rows<uint8_t>
                        : x->dtype == KVANT_INT8 ? extreme_rows<int8_t>
                                                 : extreme_rows<int16_t>;
      rows(largest, begin, end, size, x->data, y);
      return KVANT_OK;
    }
    const int64_t bytes = inner * size_of(x->dtype);
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t *from = at(x, row * size * inner);
      uint8_t *best = static_cast<uint8_t *>(y) + row * bytes;
      std::memcpy(best, from, static_cast<size_t>(bytes));
      for (int64_t i = 1; i < size; ++i) loops().extreme(inner, largest, x->dtype, from + i * bytes, best);
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_arg_max(int64_t outer, int64_t size, int64_t inner, const kvant_source *x, int64_t *y) {
  KVANT_REQUIRE(x && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner, x);
  KVANT_REQUIRE(status == KVANT_OK, status);
  return parallel(outer * inner, grain_of(size, 1), [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *q = scratch_array<int32_t>(0, size);
    KVANT_REQUIRE(q, KVANT_NO_MEMORY);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t first = line / inner * size * inner + line % inner;
      loops().centre32(size, at(x, first), x->dtype, inner, 0, q);
      y[line] = std::max_element(q, q + size) - q;
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_softmax(int64_t outer, int64_t size, int64_t inner, const kvant_source *x,
                                 const int32_t *exponentials, float inverse_scale, const kvant_target *target,
                                 void *y) {
  KVANT_REQUIRE(x && exponentials && target && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner, x);
  KVANT_REQUIRE(status == KVANT_OK, status);
  KVANT_REQUIRE(valid(target) && exponentials[0] > 0, KVANT_BAD_ARGUMENT);
  const int64_t element = size_of(target->dtype);
  return parallel(outer * inner, grain_of(size, 1), [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *q = scratch_array<int32_t>(0, size);
    float *shares = scratch_array<float>(1, size);
    uint8_t *line_y = scratch_array<uint8_t>(2, size * element);
    KVANT_REQUIRE(q && shares && line_y, KVANT_NO_MEMORY);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t first = line / inner * size * inner + line % inner;
      uint8_t *to = static_cast<uint8_t *>(y) + first * element;
      loops().centre32(size, at(x, first), x->dtype, inner, 0, q);
      loops().softmax(size, q, exponentials, inverse_scale, shares);
      loops().settle_float(size, shares, target, inner == 1 ? to : line_y);
      if (inner != 1 && element == 1) scatter<uint8_t>(size, line_y, inner, to);
      if (inner != 1 && element == 2) scatter<int16_t>(size, line_y, inner, to);
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_normalize(const kvant_norm *norm, const kvant_source *x, const float *gamma,
                                   const float *beta, const kvant_target *target, void *y) {
  KVANT_REQUIRE(norm && x && gamma && beta && target && y, KVANT_NULL_POINTER);
  const int32_t status = check(norm->rows, norm->size, 1, x);
  KVANT_REQUIRE(status == KVANT_OK, status);
  KVANT_REQUIRE(norm->groups >= 1 && norm->inner >= 1 && norm->size % norm->inner == 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(norm->size <= INT32_MAX && valid(target), KVANT_BAD_ARGUMENT);
  return parallel(norm->rows, grain_of(norm->size, 1), [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *q = scratch_array<int32_t>(0, norm->size);
    float *values = scratch_array<float>(1, norm->size);
    KVANT_REQUIRE(q && values, KVANT_NO_MEMORY);
    for (int64_t row = begin; row < end; ++row) {
      normalize_row(norm, x, row, gamma, beta, target, static_cast<uint8_t *>(y), q, values);
    }
    return KVANT_OK;
  });
}
