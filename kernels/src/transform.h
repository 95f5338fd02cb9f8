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

// What is transformed: elements within R (see transform_fields.h), pixels, or elements within R of which the second half
// is zero.
enum class Elements { kAny, kPixels, kHalf };

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

// Transform of one tile of `lanes` channels, modulo both primes: point i goes to points + i * stride.
struct Forward {
  const Modulus *moduli;
  const uint8_t *x;     // pixel (0, 0)
  int64_t row, column;  // elements from row to row, from pixel to pixel
  int16_t *points;
  int64_t stride;
};

// Points are taken by parts: all frequencies down, and across those that leave one residue, modulo one prime.
constexpr int64_t kResidues = 4;
constexpr int64_t kParts = kPrimes * kResidues;
constexpr int64_t kPartPoints = kPoints / kResidues;

// Where point number `local` of a part lies among all.
constexpr int64_t point_of(int64_t part, int64_t local) {
  const int64_t across = part % kResidues + local / kSize * kResidues, down = local % kSize;
  return part / kResidues * kPoints + down * kSize + across;
}

// Transform of the kernels of two channels for `lanes` outputs to the points of a part: what the one has of them goes
// to points + local * stride, first even, then odd outputs, of each both channels. Weights are scaled, and transformed by
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
  int64_t next_point;        // elements from here to the tiles that will be needed next, or 0
  int64_t pairs, segments;   // of channels; sums are reduced after each segment of pairs
  const int16_t *weights;    // [pair][lanes / 2 even outputs, lanes / 2 odd outputs][2]
  const int16_t *next_weights;  // that will be needed next, or null
  int16_t *sums;             // of `lanes` outputs
  int64_t sum_stride;        // elements from tile to tile
};

// What finishes the results of `lanes` outputs: lanes / 2 even ones, then lanes / 2 odd ones.
struct Settling {
  int32_t bias[kMostLanes];
  int32_t low[kMostLanes], high[kMostLanes];  // of sums without bias
  float multipliers[kMostLanes];
};

struct Backward {
  const Modulus *moduli;
  Residue first_inverse;  // of the first prime modulo the second
  const int16_t *points;  // sums of one tile and `lanes` outputs
  int64_t stride;
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
  void (*backward)(const Backward &job);
};

}  // namespace transform
}  // namespace kvant
