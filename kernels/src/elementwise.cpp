// Quantization, requantization, tables and binary functions.
#include <algorithm>
#include <cstring>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

// Work on less than this is not worth waking a thread.
constexpr int64_t kGrain = 32768;

// Call `work(first, count)` for pieces that fit the first-level cache, in parallel.
template <typename Piece>
int32_t in_pieces(int64_t count, Piece work) {
  return parallel(count, kGrain, [&](int64_t begin, int64_t end) -> int32_t {
    int32_t worst = KVANT_OK;
    for (int64_t i = begin; i < end; i += kChunk) worst = std::max(worst, work(i, std::min(kChunk, end - i)));
    return worst;
  });
}

const uint8_t *at(const kvant_source *x, int64_t index) {
  return static_cast<const uint8_t *>(x->data) + index * size_of(x->dtype);
}

uint8_t *at(void *y, const kvant_target *target, int64_t index) {
  return static_cast<uint8_t *>(y) + index * size_of(target->dtype);
}

struct Operand {
  const kvant_source *source;
  const int64_t *strides;

  void read(int64_t offset, int64_t stride, int64_t count, int32_t *out) const {
    const void *from = at(source, offset);
    if (stride != 0) return loops().centre32(count, from, source->dtype, stride, source->zero_point, out);
    loops().centre32(1, from, source->dtype, 1, source->zero_point, out);
    std::fill(out + 1, out + count, out[0]);
  }
};

struct Binary {
  int32_t function;
  int64_t rank;
  const int64_t *shape;
  Operand a, b;
  Operands operands;
  const kvant_target *target;
  uint8_t *y;

  int64_t width() const { return shape[rank - 1]; }
  // Of row `row`: all axes but the last.
  int64_t offset(int64_t row, const Operand &from) const { return offset_of(row, rank - 1, shape, from.strides); }

  // Whether both operands are of the result's type, and elements of a row side by side.
  bool alike() const {
    const int32_t dtype = target->dtype;
    return (function == KVANT_ADD || function == KVANT_MUL) && a.source->dtype == dtype && b.source->dtype == dtype &&
           a.strides[rank - 1] == 1 && b.strides[rank - 1] == 1;
  }

  // Whether row after row of `one` meets the same short row of `other`.
  bool repeats(const Operand &one, const Operand &other) const {
    return rank >= 2 && 2 * width() <= kChunk && one.strides[rank - 2] == width() && other.strides[rank - 2] == 0;
  }

  void compute_alike(int64_t count, const void *first, const void *second, int64_t index) const {
    loops().binary_alike(function == KVANT_MUL, count, first, second, operands, target, at(y, target, index));
  }
};

// Several rows at once: the row that they all meet is written as often. Where channels are scaled, rows are short.
int32_t binary_by_repeats(const Binary &binary, int64_t rows, bool first_repeats) {
  const Operand &repeated = first_repeats ? binary.a : binary.b, &other = first_repeats ? binary.b : binary.a;
  const int64_t width = binary.width(), alike = binary.shape[binary.rank - 2], size = size_of(binary.target->dtype);
  const int64_t most = std::min(kChunk / width, alike), pieces = divide_up(alike, most);
  const int64_t grain = divide_up(kGrain, most * width);
  return parallel(rows / alike * pieces, grain, [=, &binary](int64_t begin, int64_t end) -> int32_t {
    uint8_t copies[2 * kChunk];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t i = item % pieces * most, row = item / pieces * alike + i, count = std::min(most, alike - i);
      const uint8_t *from = at(repeated.source, binary.offset(row, repeated));
      for (int64_t copy = 0; copy < count; ++copy) std::memcpy(copies + copy * width * size, from, width * size);
      const void *all = at(other.source, binary.offset(row, other));
      binary.compute_alike(count * width, first_repeats ? copies : all, first_repeats ? all : copies, row * width);
    }
    return KVANT_OK;
  });
}

// Pieces of kChunk elements of a row; the last one of each row may be shorter.
int32_t binary_by_rows(const Binary &binary, int64_t rows) {
  const int64_t width = binary.width(), pieces = divide_up(width, kChunk);
  const int64_t step_a = binary.a.strides[binary.rank - 1], step_b = binary.b.strides[binary.rank - 1];
  const int64_t grain = divide_up(kGrain, std::max<int64_t>(1, std::min(width, kChunk)));
  const bool alike = binary.alike();
  return parallel(rows * pieces, grain, [=, &binary](int64_t begin, int64_t end) -> int32_t {
    int32_t first[kChunk], second[kChunk];
    float values[kChunk];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / pieces, i = item % pieces * kChunk, n = std::min(kChunk, width - i);
      const int64_t from_a = binary.offset(row, binary.a) + i * step_a;
      const int64_t from_b = binary.offset(row, binary.b) + i * step_b;
      if (alike) {
        binary.compute_alike(n, at(binary.a.source, from_a), at(binary.b.source, from_b), row * width + i);
        continue;
      }
      binary.a.read(from_a, step_a, n, first);
      binary.b.read(from_b, step_b, n, second);
      const Operands &operands = binary.operands;
      loops().binary(binary.function, n, first, second, operands.multiplier_a, operands.multiplier_b, values);
      loops().settle_float(n, values, binary.target, at(binary.y, binary.target, row * width + i));
    }
    return KVANT_OK;
  });
}

// Pixels whose channels lie `inner` apart.
struct Planes {
  int64_t channels, inner, count;
};

template <typename T>
void set_channel(const uint8_t *values, int64_t count, int64_t channels, uint8_t *y) {
  const T *from = reinterpret_cast<const T *>(values);
  T *to = reinterpret_cast<T *>(y);
  for (int64_t i = 0; i < count; ++i) to[i * channels] = from[i];
}

// Quantized and side by side; false if x holds NaN or infinity. Pictures have three channels.
bool quantize_pixels(const float *x, const Planes &planes, float scale, const kvant_target *target, uint8_t *y) {
  uint8_t values[3][2 * kChunk];
  const int64_t n = planes.count, size = size_of(target->dtype);
  const bool three = planes.channels == 3 && size == 1;
  bool finite = true;
  for (int64_t c = 0; c < planes.channels; ++c) {
    uint8_t *own = values[three ? c : 0];
    finite = loops().quantize(n, x + c * planes.inner, scale, target, own) && finite;
    if (three) continue;
    (size == 1 ? set_channel<uint8_t> : set_channel<int16_t>)(own, n, planes.channels, y + c * size);
  }
  if (three) loops().interleave_three(n, values[0], values[1], values[2], y);
  return finite;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_quantize(int64_t outer, int64_t channels, int64_t inner, const float *x, float scale,
                                  int32_t refuses, const kvant_target *target, void *y) {
  KVANT_REQUIRE(x && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(scale > 0 && valid(target), KVANT_BAD_ARGUMENT);
  int64_t rows, count;
  KVANT_REQUIRE(product({outer, inner}, &rows) && product({rows, channels}, &count), KVANT_OVERFLOW);
  const int32_t bad = refuses != 0 ? KVANT_NOT_FINITE : KVANT_OK;
  if (channels == 1 || inner == 1) {
    return in_pieces(count, [=](int64_t i, int64_t n) -> int32_t {
      return loops().quantize(n, x + i, scale, target, at(y, target, i)) ? KVANT_OK : bad;
    });
  }
  return parallel(rows, divide_up(kGrain, channels), [=](int64_t begin, int64_t end) -> int32_t {
    bool finite = true;
    for (int64_t row = begin; row < end;) {
      const int64_t image = row / inner, i = row % inner, n = std::min({kChunk, end - row, inner - i});
      const float *from = x + image * channels * inner + i;
      finite = quantize_pixels(from, {channels, inner, n}, scale, target, at(y, target, row * channels)) && finite;
      row += n;
    }
    return finite ? KVANT_OK : bad;
  });
}

extern "C" int32_t kvant_dequantize(int64_t count, const kvant_source *x, float scale, float *y) {
  KVANT_REQUIRE(x && x->data && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(count >= 0 && valid(x), KVANT_BAD_ARGUMENT);
  return in_pieces(count, [=](int64_t i, int64_t n) -> int32_t {
    int32_t centred[kChunk];
    loops().centre32(n, at(x, i), x->dtype, 1, x->zero_point, centred);
    loops().to_float(n, centred, scale, y + i);
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_rescale(int64_t count, const kvant_source *x, float multiplier, const kvant_target *target,
                                 void *y) {
  KVANT_REQUIRE(x && x->data && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(count >= 0 && valid(x) && valid(target), KVANT_BAD_ARGUMENT);
  return in_pieces(count, [=](int64_t i, int64_t n) -> int32_t {
    int32_t centred[kChunk];
    loops().centre32(n, at(x, i), x->dtype, 1, x->zero_point, centred);
    loops().settle32(n, centred, multiplier, target, at(y, target, i));
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_table(int64_t outer, int64_t channels, int64_t inner, const kvant_source *x,
                               const void *table, int64_t element_size, void *y) {
  KVANT_REQUIRE(x && x->data && table && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(valid(x) && valid_element_size(element_size), KVANT_BAD_ARGUMENT);
  int64_t rows, count;
  KVANT_REQUIRE(product({outer, channels}, &rows) && product({rows, inner}, &count), KVANT_OVERFLOW);
  const int64_t entries = x->dtype == KVANT_INT16 ? 65536 : 256;
  const uint8_t *tables = static_cast<const uint8_t *>(table);
  uint8_t *out = static_cast<uint8_t *>(y);
  if (channels == 1) {
    return in_pieces(count, [=](int64_t i, int64_t n) -> int32_t {
      loops().table(n, at(x, i), x->dtype, tables, element_size, out + i * element_size);
      return KVANT_OK;
    });
  }
  if (inner == 1) {
    return parallel(outer, divide_up(kGrain, channels), [=](int64_t begin, int64_t end) -> int32_t {
      const int64_t first = begin * channels;
      loops().tables(end - begin, channels, at(x, first), x->dtype, tables, element_size, out + first * element_size);
      return KVANT_OK;
    });
  }
  return parallel(rows, divide_up(kGrain, std::max<int64_t>(1, inner)), [=](int64_t begin, int64_t end) -> int32_t {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t *own = tables + row % channels * entries * element_size;
      loops().table(inner, at(x, row * inner), x->dtype, own, element_size, out + row * inner * element_size);
    }
    return KVANT_OK;
  });
}

extern "C" int32_t kvant_binary(int32_t function, int64_t rank, const int64_t *shape, const kvant_source *a,
                                const int64_t *strides_a, float multiplier_a, const kvant_source *b,
                                const int64_t *strides_b, float multiplier_b, const kvant_target *target, void *y) {
  KVANT_REQUIRE(shape && a && a->data && strides_a && b && b->data && strides_b && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rank >= 1 && function >= KVANT_ADD && function <= KVANT_MAX, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(valid(a) && valid(b) && valid(target), KVANT_BAD_ARGUMENT);
  int64_t rows, count;
  KVANT_REQUIRE(product(shape, rank - 1, &rows) && product(shape, rank, &count), KVANT_OVERFLOW);
  const Binary binary{function, rank, shape, {a, strides_a}, {b, strides_b},
                      {a->zero_point, b->zero_point, multiplier_a, multiplier_b}, target, static_cast<uint8_t *>(y)};
  if (binary.alike() && count > 0) {
    if (binary.repeats(binary.a, binary.b)) return binary_by_repeats(binary, rows, false);
    if (binary.repeats(binary.b, binary.a)) return binary_by_repeats(binary, rows, true);
  }
  return binary_by_rows(binary, rows);
}
