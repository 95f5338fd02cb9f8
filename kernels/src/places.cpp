// What is chosen and counted: elements by index, the largest ones, running sums, arithmetic of indices.
#include <algorithm>
#include <cstring>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kGrain = 16384;
constexpr int64_t kMostAxes = 8;

const uint8_t *at(const kvant_source *x, int64_t index) {
  return static_cast<const uint8_t *>(x->data) + index * size_of(x->dtype);
}

// Shapes that fit the address space, or a status.
int32_t check(int64_t outer, int64_t size, int64_t inner) {
  int64_t count;
  KVANT_REQUIRE(size >= 1, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(product({outer, size, inner, 8}, &count), KVANT_OVERFLOW);
  return KVANT_OK;
}

struct Pick {
  int64_t rank;
  const int64_t *shape, *strides_x, *strides_indices;
  int64_t size, step;
  const int64_t *indices;

  int64_t place(int64_t index) const { return step * (index < 0 ? index + size : index); }

  template <typename T>
  void write_row(int64_t row, const T *x, T *y) const {
    const int64_t width = shape[rank - 1], stride = strides_x[rank - 1], next = strides_indices[rank - 1];
    const T *from = x + offset_of(row, rank - 1, shape, strides_x);
    const int64_t *named = indices + offset_of(row, rank - 1, shape, strides_indices);
    T *to = y + row * width;
    if (next == 0 && stride == 1) {
      std::memcpy(to, from + place(*named), static_cast<size_t>(width) * sizeof(T));
      return;
    }
    for (int64_t i = 0; i < width; ++i) to[i] = from[i * stride + place(named[i * next])];
  }

  template <typename T>
  int32_t run(const void *x, void *y) const {
    int64_t rows;
    KVANT_REQUIRE(product(shape, rank - 1, &rows), KVANT_OVERFLOW);
    return parallel(rows, divide_up(kGrain, std::max<int64_t>(1, shape[rank - 1])), [=](int64_t begin, int64_t end) -> int32_t {
      for (int64_t row = begin; row < end; ++row) write_row(row, static_cast<const T *>(x), static_cast<T *>(y));
      return KVANT_OK;
    });
  }
};

// An element's key: larger (or smaller) elements have smaller keys, and of equal ones those that come first.
uint64_t key_of(int32_t value, int64_t index, bool largest) {
  const uint32_t ascending = static_cast<uint32_t>(value) ^ 0x80000000u;
  return static_cast<uint64_t>(largest ? ~ascending : ascending) << 32 | static_cast<uint32_t>(index);
}

int64_t floor_quotient(int64_t a, int64_t b) {
  if (b == 0) return 0;
  if (b == -1) return static_cast<int64_t>(0 - static_cast<uint64_t>(a));  // the processor traps on 2^63
  const int64_t quotient = a / b;
  return quotient - (a % b != 0 && (a < 0) != (b < 0));
}

int64_t floor_remainder(int64_t a, int64_t b) {
  if (b == 0 || b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

int64_t apply(int32_t function, int64_t a, int64_t b) {
  switch (function) {
    case KVANT_ADD:
      return a + b;
    case KVANT_SUB:
      return a - b;
    case KVANT_MUL:
      return a * b;
    case KVANT_DIV:
      return floor_quotient(a, b);
    case KVANT_MOD:
      return floor_remainder(a, b);
    case KVANT_MIN:
      return std::min(a, b);
    default:
      return std::max(a, b);
  }
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_pick(int64_t rank, const int64_t *shape, const int64_t *strides_x,
                              const int64_t *strides_indices, int64_t size, int64_t step, int64_t element_size,
                              const void *x, int64_t count, const int64_t *indices, void *y, int64_t *bad_index) {
  KVANT_REQUIRE(shape && strides_x && strides_indices && x && indices && y && bad_index, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rank >= 1 && rank <= kMostAxes && size >= 1 && step >= 0 && count >= 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(valid_element_size(element_size), KVANT_BAD_ARGUMENT);
  int64_t written;
  KVANT_REQUIRE(product(shape, rank, &written) && product({size, step, element_size}, &written), KVANT_OVERFLOW);
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < -size || indices[i] >= size) {
      *bad_index = i;
      return KVANT_BAD_INDEX;
    }
  }
  const Pick pick{rank, shape, strides_x, strides_indices, size, step, indices};
  switch (element_size) {
    case 1:
      return pick.run<uint8_t>(x, y);
    case 2:
      return pick.run<uint16_t>(x, y);
    case 4:
      return pick.run<uint32_t>(x, y);
    default:
      return pick.run<uint64_t>(x, y);
  }
}

extern "C" int32_t kvant_int_binary(int32_t function, int64_t rank, const int64_t *shape, const int64_t *a,
                                    const int64_t *strides_a, const int64_t *b, const int64_t *strides_b, int64_t *y) {
  KVANT_REQUIRE(shape && a && strides_a && b && strides_b && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rank >= 1 && rank <= kMostAxes, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(function >= KVANT_ADD && function <= KVANT_MOD, KVANT_BAD_ARGUMENT);
  int64_t rows, count;
  KVANT_REQUIRE(product(shape, rank - 1, &rows) && product(shape, rank, &count), KVANT_OVERFLOW);
  const int64_t width = shape[rank - 1], step_a = strides_a[rank - 1], step_b = strides_b[rank - 1];
  return parallel(rows, divide_up(kGrain, std::max<int64_t>(1, width)), [=](int64_t begin, int64_t end) -> int32_t {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t *left = a + offset_of(row, rank - 1, shape, strides_a);
      const int64_t *right = b + offset_of(row, rank - 1, shape, strides_b);
      for (int64_t i = 0; i < width; ++i) y[row * width + i] = apply(function, left[i * step_a], right[i * step_b]);
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_top_k(int64_t outer, int64_t size, int64_t inner, int64_t wanted, int32_t largest,
                               const kvant_source *x, int64_t *y) {
  KVANT_REQUIRE(x && x->data && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner);
  KVANT_REQUIRE(status == KVANT_OK, status);
  KVANT_REQUIRE(valid(x) && wanted >= 1 && wanted <= size && size <= INT32_MAX, KVANT_BAD_ARGUMENT);
  return parallel(outer * inner, divide_up(kGrain, size), [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *q = scratch_array<int32_t>(0, size);
    uint64_t *keys = scratch_array<uint64_t>(1, size);
    KVANT_REQUIRE(q && keys, KVANT_NO_MEMORY);
    for (int64_t line = begin; line < end; ++line) {
      const int64_t block = line / inner, column = line % inner;
      loops().centre32(size, at(x, block * size * inner + column), x->dtype, inner, 0, q);
      for (int64_t i = 0; i < size; ++i) keys[i] = key_of(q[i], i, largest != 0);
      if (wanted < size) std::nth_element(keys, keys + wanted, keys + size);
      std::sort(keys, keys + wanted);
      for (int64_t i = 0; i < wanted; ++i) {
        y[(block * wanted + i) * inner + column] = static_cast<int64_t>(keys[i] & 0xFFFFFFFFu);
      }
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_cum_sum(int64_t outer, int64_t size, int64_t inner, const kvant_source *x, float multiplier,
                                 const kvant_target *target, void *y) {
  KVANT_REQUIRE(x && x->data && target && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner);
  KVANT_REQUIRE(status == KVANT_OK, status);
  KVANT_REQUIRE(valid(x) && valid(target), KVANT_BAD_ARGUMENT);
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, size * inner));
  return parallel(outer, grain, [=](int64_t begin, int64_t end) -> int32_t {
    int32_t *q = scratch_array<int32_t>(0, inner);
    int64_t *sums = scratch_array<int64_t>(1, inner);
    KVANT_REQUIRE(q && sums, KVANT_NO_MEMORY);
    for (int64_t block = begin; block < end; ++block) {
      std::fill(sums, sums + inner, 0);
      for (int64_t i = 0; i < size; ++i) {
        const int64_t first = (block * size + i) * inner;
        loops().centre32(inner, at(x, first), x->dtype, 1, x->zero_point, q);
        loops().widen_add(inner, q, sums);
        loops().settle64(inner, sums, multiplier, target, static_cast<uint8_t *>(y) + first * size_of(target->dtype));
      }
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_int_cum_sum(int64_t outer, int64_t size, int64_t inner, const int64_t *x, int64_t *y) {
  KVANT_REQUIRE(x && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner);
  KVANT_REQUIRE(status == KVANT_OK, status);
  for (int64_t block = 0; block < outer; ++block) {
    const int64_t first = block * size * inner;
    std::copy(x + first, x + first + inner, y + first);
    for (int64_t i = first + inner; i < first + size * inner; ++i) y[i] = y[i - inner] + x[i];
  }
  return KVANT_OK;
}

extern "C" int32_t kvant_int_arg_max(int64_t outer, int64_t size, int64_t inner, const int64_t *x, int64_t *y) {
  KVANT_REQUIRE(x && y, KVANT_NULL_POINTER);
  const int32_t status = check(outer, size, inner);
  KVANT_REQUIRE(status == KVANT_OK, status);
  for (int64_t line = 0; line < outer * inner; ++line) {
    const int64_t *from = x + line / inner * size * inner + line % inner;
    int64_t best = 0;
    for (int64_t i = 1; i < size; ++i) best = from[i * inner] > from[best * inner] ? i : best;
    y[line] = best;
  }
  return KVANT_OK;
}

extern "C" int32_t kvant_real(int64_t count, const int64_t *x, float *y) {
  KVANT_REQUIRE(x && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(count >= 0, KVANT_BAD_ARGUMENT);
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(x[i]);
  return KVANT_OK;
}
