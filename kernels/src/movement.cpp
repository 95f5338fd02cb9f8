// Elements that move and never change.
#include <algorithm>
#include <cstring>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kGrain = 32768;
constexpr int64_t kMostAxes = 8;

// Call `call` with a value of the unsigned type of this size.
template <typename Call>
int32_t with_element(int64_t element_size, Call call) {
  switch (element_size) {
    case 1:
      return call(uint8_t{});
    case 2:
      return call(uint16_t{});
    case 4:
      return call(uint32_t{});
    default:
      return call(uint64_t{});
  }
}

template <typename T>
void copy_strided(int64_t count, const T *from, int64_t stride, T *to) {
  if (stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  } else if (stride == 0) {
    std::fill(to, to + count, *from);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
  }
}

// Axes of what is copied, sizes in elements. Read by reference only while its call runs.
struct Movement {
  int64_t rank, element_size, offset;
  int64_t shape[kMostAxes], strides[kMostAxes];

  int64_t count(int64_t axes) const {
    int64_t result = 1;
    for (int64_t axis = 0; axis < axes; ++axis) result *= shape[axis];
    return result;
  }

  // Where in x an index of the first `axes` axes begins.
  int64_t offset_in_x(int64_t index, int64_t axes) const { return offset_of(index, axes, shape, strides); }

  // Call `call(index, offset)` for each index of the first `axes` axes from begin to end: along the last of these axes the
  // offset goes on evenly.
  template <typename Call>
  void for_each(int64_t axes, int64_t begin, int64_t end, Call call) const {
    const int64_t length = axes > 0 ? shape[axes - 1] : 1, step = axes > 0 ? strides[axes - 1] : 0;
    for (int64_t index = begin; index < end;) {
      const int64_t line = index / length, first = index - line * length, stop = std::min(end, index - first + length);
      int64_t at = offset_in_x(line, axes - 1) + first * step;
      for (; index < stop; ++index, at += step) call(index, at);
    }
  }
};

// A last axis of two, four or eight elements side by side is one larger element, where it lies so.
void join_runs(const void *x, const void *y, Movement *movement) {
  while (movement->rank >= 2) {
    const int64_t last = movement->rank - 1, run = movement->shape[last], size = run * movement->element_size;
    const auto addresses = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y);
    if (movement->strides[last] != 1 || run < 2 || !valid_element_size(size) || addresses % size != 0) return;
    bool even = movement->offset % run == 0;
    for (int64_t axis = 0; axis < last; ++axis) even = even && movement->strides[axis] % run == 0;
    if (!even) return;
    for (int64_t axis = 0; axis < last; ++axis) movement->strides[axis] /= run;
    movement->offset /= run;
    movement->element_size = size;
    movement->rank = last;
  }
}

// Rows of the output, all axes but the last; where the last but one is dense in x instead, square tiles keep both
// sides in the cache.
template <typename T>
int32_t copy_rows(const Movement &movement, const T *x, T *y) {
  const int64_t last = movement.rank - 1, width = movement.shape[last], stride = movement.strides[last];
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, width));
  return parallel(movement.count(last), grain, [=, &movement](int64_t begin, int64_t end) -> int32_t {
    movement.for_each(last, begin, end, [=](int64_t row, int64_t offset) {
      copy_strided(width, x + offset, stride, y + row * width);
    });
    return KVANT_OK;
  });
}

// Part of a plane whose last two axes are swapped in x: out[i * width + j] = x[j * stride + i].
struct Plane {
  int64_t width, stride;
  int64_t top, bottom, left, right;
};

constexpr int64_t kTile = kByteTile;  // rows
// Whole cache lines: rows whose distance is a power of two share few places of the cache.
constexpr int64_t kTileColumns = 64;

// A few rows, side by side: channels of two or four groups, for example.
template <int kWidth, typename T>
void interleave(int64_t height, int64_t stride, const T *__restrict x, T *__restrict y) {
  for (int64_t i = 0; i < height; ++i) {
    for (int j = 0; j < kWidth; ++j) y[i * kWidth + j] = x[j * stride + i];
  }
}

// 16 rows of a tile's columns at a time, which are written line by line; the last ones with some of those before.
void transpose_tile_bytes(const Plane &plane, int64_t left, const uint8_t *x, uint8_t *y) {
  for (int64_t row = plane.top; row < plane.bottom; row += kTile) {
    const int64_t top = std::min(row, plane.bottom - kTile);
    uint8_t lines[kTile * kTileColumns];
    for (int64_t j = 0; j < kTileColumns; j += kTile) {
      loops().transpose_bytes(x + (left + j) * plane.stride + top, plane.stride, lines + j, kTileColumns);
    }
    for (int64_t i = 0; i < kTile; ++i) {
      std::memcpy(y + (top + i) * plane.width + left, lines + i * kTileColumns, kTileColumns);
    }
  }
}

template <typename T>
void transpose(const Plane &plane, const T *x, T *y) {
  for (int64_t left = plane.left; left < plane.right; left += kTileColumns) {
    const int64_t right = std::min(plane.right, left + kTileColumns);
    if constexpr (sizeof(T) == 1) {
      if (right - left == kTileColumns && plane.bottom - plane.top >= kTile) {
        transpose_tile_bytes(plane, left, x, y);
        continue;
      }
    }
    for (int64_t top = plane.top; top < plane.bottom; top += kTile) {
      const int64_t bottom = std::min(plane.bottom, top + kTile);
      for (int64_t i = top; i < bottom; ++i) {
        for (int64_t j = left; j < right; ++j) y[i * plane.width + j] = x[j * plane.stride + i];
      }
    }
  }
}

// The last two axes of the output swapped in x: (height, width) with strides (1, stride).
template <typename T>
int32_t copy_transposed(const Movement &movement, const T *x, T *y) {
  const int64_t outer = movement.rank - 2, height = movement.shape[outer], width = movement.shape[outer + 1];
  const int64_t stride = movement.strides[outer + 1], planes = movement.count(outer);
  if (width == 2 || width == 4) {
    return parallel(planes, divide_up(kGrain, height * width), [=, &movement](int64_t begin, int64_t end) -> int32_t {
      movement.for_each(outer, begin, end, [=](int64_t plane, int64_t offset) {
        const auto function = width == 2 ? interleave<2, T> : interleave<4, T>;
        function(height, stride, x + offset, y + plane * height * width);
      });
      return KVANT_OK;
    });
  }
  // A plane may be all there is: its longer side is shared.
  const bool by_rows = height > width;
  const int64_t tiles = divide_up(by_rows ? height : width, kTileColumns);
  const int64_t parts = std::min(tiles, divide_up(height * width, kGrain));
  const int64_t grain = divide_up(kGrain, divide_up(height * width, parts));
  return parallel(planes * parts, grain, [=, &movement](int64_t begin, int64_t end) -> int32_t {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t number = item / parts, part = item % parts;
      const int64_t first = tiles * part / parts * kTileColumns, last = tiles * (part + 1) / parts * kTileColumns;
      const Plane plane = by_rows ? Plane{width, stride, first, std::min(height, last), 0, width}
                                  : Plane{width, stride, 0, height, first, std::min(width, last)};
      transpose(plane, x + movement.offset_in_x(number, outer), y + number * height * width);
    }
    return KVANT_OK;
  });
}

template <typename T>
struct Indexed {
  int64_t rank;
  const int64_t *shape;
  const int64_t *counts;
  const int64_t *const *tables;
  int64_t run_begin, run_end;  // of the last table: positions where it counts up by one
  const T *x;
  T fill;

  // Offset in x of an output row, -1 where it is filled.
  int64_t offset_of(int64_t row) const {
    int64_t offset = 0, step = shape[rank - 1];
    for (int64_t axis = rank - 2; axis >= 0; --axis) {
      const int64_t from = tables[axis][row % counts[axis]];
      if (from < 0) return -1;
      offset += from * step;
      step *= shape[axis];
      row /= counts[axis];
    }
    return offset;
  }

  void write(int64_t row, T *to) const {
    const int64_t width = counts[rank - 1], offset = offset_of(row);
    if (offset < 0) {
      std::fill(to, to + width, fill);
      return;
    }
    const int64_t *table = tables[rank - 1];
    const T *from = x + offset;
    for (int64_t i = 0; i < run_begin; ++i) to[i] = table[i] < 0 ? fill : from[table[i]];
    if (run_end > run_begin) {
      std::memcpy(to + run_begin, from + table[run_begin], static_cast<size_t>(run_end - run_begin) * sizeof(T));
    }
    for (int64_t i = run_end; i < width; ++i) to[i] = table[i] < 0 ? fill : from[table[i]];
  }
};

// The longest stretch of a table that counts up by one.
void find_run(const int64_t *table, int64_t count, int64_t *begin, int64_t *end) {
  *begin = *end = 0;
  for (int64_t first = 0; first < count;) {
    int64_t last = first + 1;
    while (last < count && table[last] == table[last - 1] + 1) ++last;
    if (table[first] >= 0 && last - first > *end - *begin) {
      *begin = first;
      *end = last;
    }
    first = last;
  }
  if (*end - *begin < 8) *begin = *end = count;
}

bool tables_are_valid(int64_t rank, const int64_t *shape, const int64_t *counts, const int64_t *const *tables) {
  for (int64_t axis = 0; axis < rank; ++axis) {
    for (int64_t i = 0; i < counts[axis]; ++i) {
      if (tables[axis][i] < -1 || tables[axis][i] >= shape[axis]) return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_copy(int64_t rank, const int64_t *shape, const int64_t *strides, int64_t offset,
                              int64_t element_size, const void *x, void *y) {
  KVANT_REQUIRE(shape && strides && x && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rank >= 1 && rank <= kMostAxes && offset >= 0 && valid_element_size(element_size),
                KVANT_BAD_ARGUMENT);
  int64_t count;
  KVANT_REQUIRE(product(shape, rank, &count), KVANT_OVERFLOW);
  if (count == 0) return KVANT_OK;
  Movement movement{rank, element_size, offset, {}, {}};
  std::copy_n(shape, rank, movement.shape);
  std::copy_n(strides, rank, movement.strides);
  join_runs(x, y, &movement);
  const int64_t last = movement.rank - 1;
  const bool swapped = last > 0 && movement.strides[last - 1] == 1 && movement.strides[last] > 1;
  return with_element(movement.element_size, [x, y, swapped, &movement](auto element) {
    using T = decltype(element);
    const T *from = static_cast<const T *>(x) + movement.offset;
    return swapped ? copy_transposed(movement, from, static_cast<T *>(y))
                   : copy_rows(movement, from, static_cast<T *>(y));
  });
}

extern "C" int32_t kvant_concat(int64_t outer, int64_t count, const int64_t *sizes, int64_t element_size,
                                const void *const *x, const int64_t *strides, void *y, int64_t y_stride) {
  KVANT_REQUIRE(sizes && x && strides && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(outer >= 0 && count >= 0 && valid_element_size(element_size), KVANT_BAD_ARGUMENT);
  int64_t width = 0, given, total;
  for (int64_t i = 0; i < count; ++i) {
    KVANT_REQUIRE(sizes[i] >= 0 && strides[i] >= sizes[i], KVANT_BAD_ARGUMENT);
    KVANT_REQUIRE(!__builtin_add_overflow(width, sizes[i], &width), KVANT_OVERFLOW);
    KVANT_REQUIRE(product({outer, strides[i], element_size}, &given), KVANT_OVERFLOW);
  }
  KVANT_REQUIRE(y_stride >= width, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(product({outer, y_stride, element_size}, &total), KVANT_OVERFLOW);
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, width * element_size));
  return parallel(outer, grain, [=](int64_t begin, int64_t end) -> int32_t {
    int64_t at = 0;
    for (int64_t i = 0; i < count; at += sizes[i++] * element_size) {
      if (x[i] == nullptr) continue;
      const uint8_t *from = static_cast<const uint8_t *>(x[i]);
      uint8_t *to = static_cast<uint8_t *>(y) + at;
      for (int64_t row = begin; row < end; ++row) {
        std::memcpy(to + row * y_stride * element_size, from + row * strides[i] * element_size,
                    static_cast<size_t>(sizes[i] * element_size));
      }
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_index(int64_t rank, const int64_t *shape, const int64_t *counts,
                               const int64_t *const *tables, int64_t element_size, const void *x, const void *fill,
                               void *y) {
  KVANT_REQUIRE(shape && counts && tables && x && fill && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rank >= 1 && rank <= kMostAxes && valid_element_size(element_size), KVANT_BAD_ARGUMENT);
  int64_t rows, count, given;
  KVANT_REQUIRE(product(counts, rank - 1, &rows) && product(counts, rank, &count) && product(shape, rank, &given),
                KVANT_OVERFLOW);
  for (int64_t axis = 0; axis < rank; ++axis) KVANT_REQUIRE(tables[axis], KVANT_NULL_POINTER);
  KVANT_REQUIRE(tables_are_valid(rank, shape, counts, tables), KVANT_BAD_ARGUMENT);
  int64_t run_begin, run_end;
  const int64_t width = counts[rank - 1];
  find_run(tables[rank - 1], width, &run_begin, &run_end);
  return with_element(element_size, [=](auto element) {
    using T = decltype(element);
    const Indexed<T> indexed{rank,    shape,   counts, tables, run_begin, run_end, static_cast<const T *>(x),
                             *static_cast<const T *>(fill)};
    T *to = static_cast<T *>(y);
    const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, width));
    return parallel(rows, grain, [=](int64_t begin, int64_t end) -> int32_t {
      for (int64_t row = begin; row < end; ++row) indexed.write(row, to + row * width);
      return KVANT_OK;
    });
  });
}

extern "C" int32_t kvant_gather(int64_t outer, int64_t size, int64_t inner, int64_t element_size, const void *x,
                                int64_t count, const int64_t *indices, void *y, int64_t *bad_index) {
  KVANT_REQUIRE(x && indices && y && bad_index, KVANT_NULL_POINTER);
  KVANT_REQUIRE(size >= 0 && count >= 0 && valid_element_size(element_size), KVANT_BAD_ARGUMENT);
  int64_t read, written;
  KVANT_REQUIRE(product({outer, size, inner, element_size}, &read), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({outer, count, inner, element_size}, &written), KVANT_OVERFLOW);
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] < -size || indices[i] >= size) {
      *bad_index = i;
      return KVANT_BAD_INDEX;
    }
  }
  const int64_t bytes = inner * element_size;
  uint8_t *to = static_cast<uint8_t *>(y);
  for (int64_t row = 0; row < outer; ++row) {
    const uint8_t *from = static_cast<const uint8_t *>(x) + row * size * bytes;
    for (int64_t i = 0; i < count; ++i, to += bytes) {
      const int64_t index = indices[i] < 0 ? indices[i] + size : indices[i];
      std::memcpy(to, from + index * bytes, static_cast<size_t>(bytes));
    }
  }
  return KVANT_OK;
}
