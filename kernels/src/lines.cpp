// Lines between peaks, by the fields that point along them.
#include <algorithm>
#include <cmath>

#include "common.h"

namespace kvant {
namespace {

constexpr float kLeastLength = 1e-3f;

// 0 for NaN, too.
float clamp(float value, float high) { return value > 0.0f ? (value < high ? value : high) : 0.0f; }

// A place between four cells: the first of them, how far the others are from it, and the weights of these.
struct Place {
  int64_t cell, right, below;
  float dx, dy;

  Place(const kvant_fields &fields, float x, float y) {
    const float column = clamp(x * fields.scale[0] + fields.shift[0], static_cast<float>(fields.width - 1));
    const float row = clamp(y * fields.scale[1] + fields.shift[1], static_cast<float>(fields.height - 1));
    const int64_t left = static_cast<int64_t>(column), top = static_cast<int64_t>(row);
    cell = top * fields.width + left;
    right = left + 1 < fields.width ? 1 : 0;
    below = top + 1 < fields.height ? fields.width : 0;
    dx = column - static_cast<float>(left);
    dy = row - static_cast<float>(top);
  }

  float value(const float *channel) const {
    const float *upper = channel + cell, *lower = upper + below;
    const float above = upper[0] * (1.0f - dx) + upper[right] * dx;
    return above * (1.0f - dy) + (lower[0] * (1.0f - dx) + lower[right] * dx) * dy;
  }
};

struct Lines {
  int64_t count;
  const kvant_fields *fields;
  const kvant_line_rules &rules;

  // Whether the fields support a line, and if so, how far they point along it on average.
  bool support(const kvant_kind &kind, const kvant_peak &start, const kvant_peak &end, float *score) const {
    const float x = end.x - start.x, y = end.y - start.y;
    const float length = std::max(std::sqrt(x * x + y * y), kLeastLength);
    const float unit_x = x / length, unit_y = y / length;
    float total = 0.0f;
    int64_t failures = 0;
    for (int64_t i = 0; i < rules.points; ++i) {
      // Nearly all pairs are of two things, which shows in the middle: it comes first.
      const int64_t point = (i + rules.points / 3) % rules.points;
      const double last = static_cast<double>(std::max<int64_t>(rules.points - 1, 1));
      const float step = static_cast<float>(static_cast<double>(point) / last);
      const float along = along_at(kind, start.x + step * x, start.y + step * y, unit_x, unit_y);
      if (along <= rules.threshold && ++failures > rules.failures) return false;
      total += along;
    }
    *score = total / static_cast<float>(rules.points) + std::min(rules.long_line / length - 1.0f, 0.0f);
    return *score > 0.0f;
  }

 private:
  float along_at(const kvant_kind &kind, float x, float y, float unit_x, float unit_y) const {
    float total = 0.0f;
    for (int64_t m = 0; m < count; ++m) {
      const Place place(fields[m], x, y);
      const int64_t size = fields[m].height * fields[m].width;
      total += place.value(fields[m].data + kind.x * size) * unit_x + place.value(fields[m].data + kind.y * size) * unit_y;
    }
    return total / static_cast<float>(count);
  }
};

bool stronger(const kvant_line &one, const kvant_line &other) {
  if (one.strength != other.strength) return one.strength > other.strength;
  if (one.kind != other.kind) return one.kind < other.kind;
  return one.start != other.start ? one.start < other.start : one.end < other.end;
}

int32_t check_fields(int64_t count, const kvant_fields *fields, int64_t channels) {
  KVANT_REQUIRE(count >= 1 && channels >= 0, KVANT_BAD_ARGUMENT);
  for (int64_t m = 0; m < count; ++m) {
    KVANT_REQUIRE(fields[m].data, KVANT_NULL_POINTER);
    // float32 tells cells apart.
    for (const int64_t size : {fields[m].height, fields[m].width}) {
      KVANT_REQUIRE(size >= 1 && size <= int64_t{1} << 22, KVANT_BAD_ARGUMENT);
    }
    int64_t bytes;
    KVANT_REQUIRE(product({channels, fields[m].height, fields[m].width, 4}, &bytes), KVANT_OVERFLOW);
  }
  return KVANT_OK;
}

int32_t check_kinds(int64_t field_channels, int64_t channels, const int64_t *bounds, int64_t kinds,
                    const kvant_kind *kind) {
  KVANT_REQUIRE(channels >= 0 && kinds >= 0 && kinds <= INT32_MAX && bounds[0] == 0, KVANT_BAD_ARGUMENT);
  for (int64_t c = 0; c < channels; ++c) KVANT_REQUIRE(bounds[c] <= bounds[c + 1], KVANT_BAD_ARGUMENT);
  KVANT_REQUIRE(bounds[channels] <= INT32_MAX, KVANT_OVERFLOW);
  for (int64_t k = 0; k < kinds; ++k) {
    for (const int64_t end : {kind[k].start, kind[k].end}) {
      KVANT_REQUIRE(end >= 0 && end < channels, KVANT_BAD_ARGUMENT);
    }
    for (const int64_t axis : {kind[k].x, kind[k].y}) {
      KVANT_REQUIRE(axis >= 0 && axis < field_channels, KVANT_BAD_ARGUMENT);
    }
  }
  return KVANT_OK;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_lines(int64_t count, const kvant_fields *fields, int64_t field_channels, int64_t channels,
                               const kvant_peak *peaks, const int64_t *bounds, int64_t kinds, const kvant_kind *kind,
                               const kvant_line_rules *rules, kvant_line *lines, int64_t *found) {
  KVANT_REQUIRE(fields && peaks && bounds && kind && rules && lines && found, KVANT_NULL_POINTER);
  KVANT_REQUIRE(rules->points >= 1 && rules->failures >= 0, KVANT_BAD_ARGUMENT);
  int32_t status = check_fields(count, fields, field_channels);
  if (status == KVANT_OK) status = check_kinds(field_channels, channels, bounds, kinds, kind);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const Lines along{count, fields, *rules};
  *found = 0;
  for (int64_t k = 0; k < kinds; ++k) {
    for (int64_t start = bounds[kind[k].start]; start < bounds[kind[k].start + 1]; ++start) {
      for (int64_t end = bounds[kind[k].end]; end < bounds[kind[k].end + 1]; ++end) {
        float score;
        if (!along.support(kind[k], peaks[start], peaks[end], &score)) continue;
        const float strength = score + rules->peak_weight * (peaks[start].height + peaks[end].height);
        if (std::isnan(strength)) continue;  // has no place in the order
        lines[(*found)++] = {static_cast<int32_t>(k), static_cast<int32_t>(start), static_cast<int32_t>(end), score, strength};
      }
    }
  }
  std::sort(lines, lines + *found, stronger);
  return KVANT_OK;
}
