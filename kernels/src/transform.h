// Exact convolution by a number-theoretic transform: its inner loops, compiled once for each instruction set, and the
// tables they share with transform.cpp, which says how it works and proves that nothing overflows.
#pragma once

#include <cstdint>

#include "kvant.h"

namespace kvant {

// Bytes of packed weights of a layer that make_transform may take, or 0 where it does not apply to its shape, its types
// or this machine. Whether it is exact for the weights shows when they are packed.
int64_t transform_bytes(const kvant_conv_layer &layer, bool late);
// Bytes that its late weights need in a run, on all threads together.
int64_t transform_room(const kvant_conv_layer &layer);

namespace transform {

constexpr int64_t kSize = 16;             // tiles are kSize x kSize pixels
constexpr int64_t kPoints = kSize * kSize;  // of a tile, modulo each prime
constexpr int64_t kPrimes = 2;
constexpr int64_t kMostKernel = 11;       // rows and columns of a kernel
constexpr int64_t kMostTile = 12;         // rows and columns of results of a tile
constexpr int64_t kMostLanes = 32;

// What is transformed: elements within R (see transform_fields.h), all or only the first half of them not zero.
enum class Elements { kAny, kHalf };

// A constant factor b modulo a prime p, for Montgomery's product (a * value - (a * factor mod 2^16) * p) / 2^16, which
// is a * b modulo p.
struct Residue {
  int16_t value;   // b * 2^16 mod p, centred
  int16_t factor;  // value / p mod 2^16
};

struct Modulus {
  int16_t prime;
  int16_t inverse;  // of the prime modulo 2^16
  int16_t nearest;  // 2^15 / prime, rounded
  int16_t wrap;     // 2^16 mod prime, centred
  Residue forward[kSize], backward[kSize];  // powers of a root of unity of order kSize, and of its inverse
  // The latter times the factor of weights: sums over channels are divided by 2^16, inverse transforms multiply by kPoints.
  Residue weights[kSize];
};

// Points are taken by parts: all frequencies down, and across those that leave one residue, modulo one prime. Whatever is
// done with a part stays in a core's own cache.
constexpr int64_t kResidues = 4;
constexpr int64_t kAcross = kSize / kResidues;  // frequencies across of a part
constexpr int64_t kParts = kPrimes * kResidues;
constexpr int64_t kPartPoints = kPoints / kResidues;  // point `x * kSize + y` has frequency residue + x * kResidues across

// Transform of one tile of `lanes` channels to the points of a part: point i goes to points + i * stride.
struct Forward {
  const Modulus *modulus;
  int64_t residue;
  const uint8_t *x;     // pixel (0, 0)
  int64_t row, column;  // elements from row to row, from pixel to pixel
  int16_t *points;
  int64_t stride;
};

// Transform of the kernels of two channels for `lanes` outputs to the points of a part: what point i has of them goes
// to points + i * stride, first even, then odd outputs, of each both channels. Weights are scaled, and transformed by
// the inverse root, so that products at points are those of a correlation.
struct Kernels {
  const Modulus *modulus;
  int64_t residue;
  const int8_t *weights;  // [2][kernel[0]][kernel[1]][lanes], within -127..127
  int64_t kernel[2];
  int16_t *points;
  int64_t stride;
};

// Sums over channels at one point: (tiles x channels) times (channels x `lanes` outputs).
struct Products {
  const Modulus *modulus;
  const int16_t *tiles;
  int64_t count, stride;     // of tiles; elements from tile to tile
  int64_t pairs, segments;   // of channels; sums are reduced after each segment of pairs
  const int16_t *weights;    // [pair][lanes / 2 even outputs, lanes / 2 odd outputs][2]
  const int16_t *next_weights;  // that will be needed next, or these
  int16_t *sums;             // of `lanes` outputs
  int64_t sum_stride;        // elements from tile to tile
};

// What finishes the results of `lanes` outputs: lanes / 2 even ones, then lanes / 2 odd ones.
struct Settling {
  int32_t bias[kMostLanes];
  int32_t low[kMostLanes], high[kMostLanes];  // of sums without bias
  float multipliers[kMostLanes];
};

// Inverse transform down of the sums of one tile and `lanes` outputs at the points of a part.
struct Columns {
  const Modulus *modulus;
  const int16_t *sums;
  int64_t stride;   // elements from point to point
  int64_t rows;     // of results that the tile has
  int16_t *halves;  // [kMostTile][frequency across of the part][lanes]
  const int16_t *next;  // halves that will be written next
};

// The rest of it, across.
struct Rows {
  const Modulus *moduli;
  Residue first_inverse;  // of the first prime modulo the second
  const int16_t *halves;  // [part][kMostTile][frequency across of the part][lanes]
  const Settling *settling;
  kvant_target target;
  uint8_t *y;               // result (0, 0)
  int64_t rows, columns;    // of results that the tile has
  int64_t row, column;      // elements from row to row and from pixel to pixel of y
  int64_t outputs;          // of the lanes, those that exist
};

struct Transforms {
  int64_t lanes;  // channels or outputs that are transformed at a time
  void (*forward)(const Forward &job);
  void (*forward_kernels)(const Kernels &job);
  void (*multiply)(const Products &job);
  void (*backward_columns)(const Columns &job);
  void (*backward_rows)(const Rows &job);
};

}  // namespace transform
}  // namespace kvant
