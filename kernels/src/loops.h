// The inner loops: compiled once for each instruction set, from the same source, and chosen when the library is loaded.
//
// Integer results are exact and float operations are single, correctly rounded ones in a fixed order, so that every
// build gives the same bits.
#pragma once

#include <cstdint>

#include "kvant.h"

namespace kvant {

// How sums become results.
struct Finish {
  float multiplier;
  kvant_target target;
};

// A tile of sums, row after row of `width`, of which `columns` are real, and where its results go.
struct Tile {
  int64_t rows, columns, width;
  uint8_t *y;
  int64_t stride;  // bytes from row to row of y
};

// The operands of a binary function.
struct Operands {
  int32_t zero_a, zero_b;
  float multiplier_a, multiplier_b;
};

// Windows side by side: of `rows` rows of pixels, `row` elements apart, each of the columns; a pixel is `inner` elements.
struct WindowRow {
  int64_t rows, row;
  const kvant_windows *columns;
  int64_t inner;
};

constexpr int64_t kByteTile = 16;  // rows and columns of bytes that are transposed together

struct Moments {
  int64_t sum, squares;
};

// A line of a norm, channel after channel: values = ((size * q - sum) * factor * gamma + beta) / output_scale.
struct Line {
  int64_t size, inner;  // elements of the line, and of a channel
  int64_t sum;
  float factor, output_scale;
  bool narrow;  // size * q - sum fits int32
};

// Tile of products: rows of a times columns of v. Both are packed in pairs of consecutive k:
// a[pair][row][2], v[pair][column][2]; tile[row][column].
struct Loops {
  int64_t rows;     // most rows that `multiply` takes: a power of two
  int64_t lanes;    // columns of one vector
  int64_t vectors;  // most vectors of columns
  void (*multiply)(int64_t rows, int64_t vectors, int64_t pairs, const int16_t *a, const int16_t *v, int32_t *tile);
  void (*finish32)(const Finish &finish, const Tile &tile, const int32_t *sums);
  void (*finish64)(const Finish &finish, const Tile &tile, const int64_t *sums);
  // Two rows of 16-bit integers, element by element side by side.
  void (*interleave)(int64_t count, const int16_t *first, const int16_t *second, int16_t *out);
  void (*interleave_three)(int64_t count, const uint8_t *a, const uint8_t *b, const uint8_t *c, uint8_t *out);
  // x[i * stride] - zero_point.
  void (*centre16)(int64_t count, const void *x, int32_t dtype, int64_t stride, int32_t zero_point, int16_t *out);
  void (*centre32)(int64_t count, const void *x, int32_t dtype, int64_t stride, int32_t zero_point, int32_t *out);

  // Requantize: a row of sums with one multiplier, or with one for each element.
  void (*settle32)(int64_t count, const int32_t *sums, float multiplier, const kvant_target *target, void *y);
  void (*settle64)(int64_t count, const int64_t *sums, float multiplier, const kvant_target *target, void *y);
  void (*settle32_each)(int64_t count, const int32_t *sums, const float *multipliers, const kvant_target *target,
                        void *y);
  void (*settle64_each)(int64_t count, const int64_t *sums, const float *multipliers, const kvant_target *target,
                        void *y);
  void (*settle_float)(int64_t count, const float *values, const kvant_target *target, void *y);

  void (*widen_add)(int64_t count, const int32_t *values, int64_t *sums);

  // False if x holds NaN or infinity.
  bool (*quantize)(int64_t count, const float *x, float scale, const kvant_target *target, void *y);
  void (*to_float)(int64_t count, const int32_t *x, float multiplier, float *y);
  // out[i] = a[i] * multiplier_a + or - b[i] * multiplier_b, and so on, before rounding.
  void (*binary)(int32_t function, int64_t count, const int32_t *a, const int32_t *b, float multiplier_a,
                 float multiplier_b, float *out);
  // The same for a sum or a product, rounded too, where a, b and y are of the target's type; y may be a or b.
  void (*binary_alike)(bool product, int64_t count, const void *a, const void *b, const Operands &operands,
                       const kvant_target *target, void *y);
  void (*table)(int64_t count, const void *x, int32_t dtype, const void *entries, int64_t element_size, void *y);
  // The same of pixels whose channels have a table each, one after the other.
  void (*tables)(int64_t pixels, int64_t channels, const void *x, int32_t dtype, const void *entries,
                 int64_t element_size, void *y);
  // Softmax of a line: exponentials[largest q - q[i]], which replaces q[i], over the sum of all, times `inverse_scale`.
  void (*softmax)(int64_t size, int32_t *q, const int32_t *exponentials, float inverse_scale, float *shares);
  // Add up a stretch: its squares fit int32 together if they are those of bytes.
  void (*add_moments)(int64_t count, const int32_t *q, bool bytes, Moments *moments);
  void (*normalize)(const Line &line, const int32_t *q, const float *gamma, const float *beta, float *values);
  // A tile: y[i * width + j] = x[j * stride + i].
  void (*transpose_bytes)(const uint8_t *x, int64_t stride, uint8_t *y, int64_t width);
  // best[i] = max or min(best[i], x[i]).
  void (*extreme)(int64_t count, bool largest, int32_t dtype, const void *x, void *best);
  // The largest element of each window's pixels. x is the first row's first pixel.
  void (*max_row)(const WindowRow &windows, int32_t dtype, const void *x, void *y);
  // sums[i] += x[i] - zero_point.
  void (*accumulate32)(int64_t count, const void *x, int32_t dtype, int32_t zero_point, int32_t *sums);
  // out[i] = lower[i] * (one - weight) + upper[i] * weight.
  void (*blend32)(int64_t count, const int32_t *lower, const int32_t *upper, int64_t weight, int64_t one, int32_t *out);
  void (*blend64)(int64_t count, const int64_t *lower, const int64_t *upper, int64_t weight, int64_t one, int64_t *out);
};

// The loops for this machine.
const Loops &loops();

// `settle32` or `settle64`.
inline void settle(int64_t count, const int32_t *sums, float multiplier, const kvant_target *target, void *y) {
  loops().settle32(count, sums, multiplier, target, y);
}
inline void settle(int64_t count, const int64_t *sums, float multiplier, const kvant_target *target, void *y) {
  loops().settle64(count, sums, multiplier, target, y);
}

// The instruction set that they use.
enum class Isa { kPortable, kNeonDot, kAvx2, kAvxVnni, kAvx512Vnni };
Isa isa();

}  // namespace kvant
