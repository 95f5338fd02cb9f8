// Images at computed places.
#include <algorithm>
#include <cstdlib>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kGrain = 16384;
constexpr int64_t kMostTaps = 4;
constexpr int64_t kMostPhases = 2048;
constexpr int64_t kMostWeight = 1 << 20;
// Places are moved this close before they become integers: no image is larger.
constexpr double kFarthest = 0x1p50;

constexpr double kRounder = 0x1.8p52;

// phases is 2 to the power of bits.
struct Sampling : kvant_sampling {
  int bits;
};

// The pixels of one axis that count at a place, and their weights; 0 where there is none.
struct Axis {
  int64_t pixels[kMostTaps];
  int64_t weights[kMostTaps];
};

int64_t floor_mod(int64_t value, int64_t by) {
  const int64_t rest = value % by;
  return rest < 0 ? rest + by : rest;
}

int64_t reflected(int64_t index, int64_t size, bool align_corners) {
  const int64_t last = size - 1;
  if (align_corners) return last - std::abs(last - floor_mod(index, std::max<int64_t>(2 * last, 1)));
  const int64_t turned = floor_mod(index, 2 * size);
  return std::min(turned, 2 * size - 1 - turned);
}

int64_t read(const kvant_source &x, int64_t index) {
  if (x.dtype == KVANT_INT16) return static_cast<const int16_t *>(x.data)[index];
  const int64_t q = x.dtype == KVANT_UINT8 ? static_cast<const uint8_t *>(x.data)[index]
                                           : static_cast<const int8_t *>(x.data)[index];
  return q - x.zero_point;
}

Axis pixels_at(const Sampling &s, double at, int64_t size) {
  const double place = s.align_corners ? (at + 1.0) * (static_cast<double>(size - 1) * 0.5)
                                       : ((at + 1.0) * static_cast<double>(size) - 1.0) * 0.5;
  const double fine = std::min(std::max(place * static_cast<double>(s.phases), -kFarthest), kFarthest);
  // Adding and subtracting 1.5 * 2^52 rounds half to even.
  const int64_t whole = static_cast<int64_t>((fine + kRounder) - kRounder), phase = whole & (s.phases - 1);
  const int64_t first = (whole >> s.bits) + s.first;
  Axis found;
  for (int64_t tap = 0; tap < s.taps; ++tap) {
    int64_t index = first + tap;
    if (s.padding == KVANT_REFLECTION) index = reflected(index, size, s.align_corners != 0);
    const int64_t inside = std::min(std::max<int64_t>(index, 0), size - 1);
    const bool counts = s.padding != KVANT_ZEROS || index == inside;
    found.pixels[tap] = inside;
    found.weights[tap] = counts ? s.weights[phase * s.taps + tap] : 0;
  }
  return found;
}

template <typename T, typename Sum>
void add_pixel(int64_t channels, const T *x, Sum zero_point, Sum weight, Sum *sums) {
  for (int64_t c = 0; c < channels; ++c) sums[c] += weight * (static_cast<Sum>(x[c]) - zero_point);
}

template <typename T, typename Sum>
void sum_pixels(const Sampling &s, const T *image, int32_t zero_point, const Axis &rows, const Axis &columns,
                Sum *sums) {
  std::fill(sums, sums + s.channels, Sum{0});
  for (int64_t i = 0; i < s.taps; ++i) {
    for (int64_t j = 0; j < s.taps; ++j) {
      const Sum weight = static_cast<Sum>(rows.weights[i] * columns.weights[j]);
      if (weight == 0) continue;
      const T *pixel = image + (rows.pixels[i] * s.size[1] + columns.pixels[j]) * s.channels;
      add_pixel<T, Sum>(s.channels, pixel, zero_point, weight, sums);
    }
  }
}

struct Sampler {
  const Sampling &s;
  const kvant_source *x, *grid;
  float multiplier;
  const kvant_target *target;
  uint8_t *y;

  // Sums of some points, side by side, then their results.
  template <typename T, typename Sum>
  int32_t run(int64_t begin, int64_t end) const {
    const int64_t most = std::max<int64_t>(1, kChunk / s.channels);
    Sum *sums = scratch_array<Sum>(0, most * s.channels);
    KVANT_REQUIRE(sums, KVANT_NO_MEMORY);
    for (int64_t first = begin; first < end; first += most) {
      const int64_t last = std::min(end, first + most);
      for (int64_t point = first; point < last; ++point) {
        const T *image = static_cast<const T *>(x->data) + point / s.points * s.size[0] * s.size[1] * s.channels;
        const Axis columns = pixels_at(s, static_cast<double>(read(*grid, 2 * point)) * s.scale, s.size[1]);
        const Axis rows = pixels_at(s, static_cast<double>(read(*grid, 2 * point + 1)) * s.scale, s.size[0]);
        sum_pixels<T, Sum>(s, image, x->zero_point, rows, columns, sums + (point - first) * s.channels);
      }
      settle((last - first) * s.channels, sums, multiplier, target, y + first * s.channels * size_of(target->dtype));
    }
    return KVANT_OK;
  }
};

// The largest sum of magnitudes of a phase's weights; -1 if it is too large.
int64_t reach_of(const kvant_sampling &s) {
  int64_t reach = 0;
  for (int64_t phase = 0; phase < s.phases; ++phase) {
    int64_t sum = 0;
    for (int64_t tap = 0; tap < s.taps; ++tap) sum += std::abs(static_cast<int64_t>(s.weights[phase * s.taps + tap]));
    reach = std::max(reach, sum);
  }
  return reach > kMostWeight ? -1 : reach;
}

int32_t check(const kvant_sampling &s) {
  int64_t count;
  KVANT_REQUIRE(s.weights, KVANT_NULL_POINTER);
  KVANT_REQUIRE(s.batch >= 0 && s.points >= 1 && s.channels >= 1 && s.scale > 0.0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(s.taps >= 1 && s.taps <= kMostTaps && s.phases >= 1 && s.phases <= kMostPhases, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE((s.phases & (s.phases - 1)) == 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(s.first >= -kMostTaps && s.first <= 0, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(s.padding >= KVANT_ZEROS && s.padding <= KVANT_REFLECTION, KVANT_BAD_ARGUMENT);
  for (const int64_t size : s.size) KVANT_REQUIRE(size >= 1 && size <= INT32_MAX, KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(product({s.batch, s.size[0], s.size[1], s.channels, 8}, &count), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({s.batch, s.points, s.channels, 8}, &count), KVANT_OVERFLOW);
  KVANT_REQUIRE(product({s.batch, s.points, 16}, &count), KVANT_OVERFLOW);
  return KVANT_OK;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_grid_sample(const kvant_sampling *sampling, const kvant_source *x, const kvant_source *grid,
                                     float multiplier, const kvant_target *target, void *y) {
  KVANT_REQUIRE(sampling && x && x->data && grid && grid->data && target && y, KVANT_NULL_POINTER);
  KVANT_REQUIRE(valid(x) && valid(grid) && valid(target), KVANT_BAD_ARGUMENT);
  const int32_t status = check(*sampling);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const int64_t reach = reach_of(*sampling);
  KVANT_REQUIRE(reach >= 0, KVANT_BAD_ARGUMENT);
  int64_t largest;  // sums of bytes, which mostly stay within int32
  const bool narrow = product({reach, reach, 255}, &largest) && largest <= INT32_MAX;
  Sampling s{*sampling, 0};
  while (int64_t{1} << s.bits < s.phases) ++s.bits;
  const Sampler sampler{s, x, grid, multiplier, target, static_cast<uint8_t *>(y)};
  const int64_t grain = divide_up(kGrain, s.taps * s.taps * s.channels);
  return parallel(s.batch * s.points, grain, [&](int64_t begin, int64_t end) {
    if (x->dtype == KVANT_INT16) return sampler.run<int16_t, int64_t>(begin, end);
    if (x->dtype == KVANT_INT8) return sampler.run<int8_t, int64_t>(begin, end);
    return narrow ? sampler.run<uint8_t, int32_t>(begin, end) : sampler.run<uint8_t, int64_t>(begin, end);
  });
}
