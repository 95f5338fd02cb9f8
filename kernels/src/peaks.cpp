// Peaks of interpolated maps.
//
// Maps are nearly empty: a row or column whose cells are too small for a value above the threshold is not interpolated.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kGrain = int64_t{1} << 16;  // results that one thread should have at least
constexpr float kLeastCurvature = 1e-9f;
constexpr float kSlack = 1.001f;  // sums are rounded

// Set the flags of rows and columns with a cell whose absolute value is above `limit`, both as bits: these are ordered as
// the values are, and NaN comes last.
void mark(const kvant_maps &maps, const float *channel, int32_t limit, int32_t *rows, int32_t *__restrict columns) {
  std::fill(columns, columns + maps.width, 0);
  for (int64_t r = 0; r < maps.height; ++r) {
    const int32_t *line = reinterpret_cast<const int32_t *>(channel + r * maps.width);
    int32_t any = 0;
    for (int64_t c = 0; c < maps.width; ++c) {
      const int32_t large = -((line[c] & INT32_MAX) > limit);
      any |= large;
      columns[c] |= large;
    }
    rows[r] = any;
  }
}

// What no result exceeds for cells of 1.
float gain(const kvant_filter &filter) {
  float largest = 0.0f;
  for (int64_t i = 0; i < filter.count; ++i) {
    float total = 0.0f;
    for (int64_t k = 0; k < filter.terms; ++k) total += std::fabs(filter.weights[i * filter.terms + k]);
    largest = std::max(largest, total);
  }
  return largest;
}

// Results of one axis that are computed: those that may hold peaks, and their neighbours.
struct Chosen {
  int64_t *index;
  bool *may_peak;  // of all results
  int32_t *before;  // marked cells before each
  int64_t count;

  // Add results of marked cells.
  void consider(const kvant_filter &filter, int64_t size, const int32_t *marks) {
    before[0] = 0;
    for (int64_t r = 0; r < size; ++r) before[r + 1] = before[r] + (marks[r] != 0);
    for (int64_t i = 0; i < filter.count; ++i) {
      const int32_t *first = before + filter.first[i];
      may_peak[i] |= first[filter.terms] != first[0];
    }
  }

  void choose(int64_t results) {
    count = 0;
    for (int64_t i = 0; i < results; ++i) {
      if (may_peak[i] || (i > 0 && may_peak[i - 1]) || (i + 1 < results && may_peak[i + 1])) index[count++] = i;
    }
  }
};

struct Candidate {
  float height;
  int64_t row, column;  // where it lies among those that are computed

  // The order of peaks; among equals that of reading.
  bool operator<(const Candidate &other) const {
    if (height != other.height) return height > other.height;
    return row != other.row ? row < other.row : column < other.column;
  }
};

// Where the parabola through three values, of which the middle one is the highest, has its top: -0.5 to 0.5.
float vertex(float before, float centre, float after) {
  const float curvature = 2.0f * centre - before - after;
  const float top = 0.5f * (after - before) / (curvature > kLeastCurvature ? curvature : kLeastCurvature);
  return top > -0.5f ? (top < 0.5f ? top : 0.5f) : -0.5f;
}

// Add to `V` vectors at a time, from value `c` on, the sum over lines of cells, `pitch` apart, times their weights.
template <int V>
int64_t add_some(const float *weights, int64_t terms, const float *from, int64_t pitch, int64_t c, int64_t count,
                 float *to) {
  for (; c + 4 * V <= count; c += 4 * V) {
    Four sums[V] = {};
    for (int64_t k = 0; k < terms; ++k) {
      const Four *line = reinterpret_cast<const Four *>(from + k * pitch + c);
      for (int v = 0; v < V; ++v) sums[v] += weights[k] * line[v];
    }
    for (int v = 0; v < V; ++v) reinterpret_cast<Four *>(to + c)[v] += sums[v];
  }
  return c;
}

// Add result i of interpolation across lines of `count` cells, `pitch` apart.
void add_weighted(const kvant_filter &filter, int64_t i, const float *lines, int64_t pitch, int64_t count, float *to) {
  const float *weights = filter.weights + i * filter.terms, *from = lines + filter.first[i] * pitch;
  int64_t c = add_some<4>(weights, filter.terms, from, pitch, 0, count, to);
  c = add_some<1>(weights, filter.terms, from, pitch, c, count, to);
  for (; c < count; ++c) {
    float sum = 0.0f;
    for (int64_t k = 0; k < filter.terms; ++k) sum += weights[k] * from[k * pitch + c];
    to[c] += sum;
  }
}

struct Search {
  int64_t count;
  const kvant_maps *maps;
  float threshold;
  int64_t most;
  const double *steps;
  Chosen rows, columns;
  int32_t *row_marks, *column_marks;
  int32_t *limits;  // for each of the maps, the bits of what a cell must exceed to count
  float *line;     // one row of cells, interpolated across rows
  float *upright;  // of each column of cells, the chosen rows
  float *values;   // of each chosen column, the chosen rows, within a border that is lower than any peak
  Candidate *candidates;

  bool allocate();
  int64_t in_channel(int64_t channel, kvant_peak *peaks);

 private:
  int64_t pitch() const { return rows.count + 2; }
  float *at(int64_t column, int64_t row) const { return values + (column + 1) * pitch() + row + 1; }
  void choose(int64_t channel);
  void interpolate(int64_t channel);
  void add(const kvant_maps &own, const float *cells);
  int64_t find();
  kvant_peak peak(const Candidate &candidate) const;
};

bool Search::allocate() {
  int64_t height = 0, width = 0;
  for (int64_t m = 0; m < count; ++m) {
    height = std::max(height, maps[m].height);
    width = std::max(width, maps[m].width);
  }
  const int64_t down = maps->rows.count, across = maps->columns.count;
  int64_t *indices = scratch_array<int64_t>(0, down + across);
  bool *flags = scratch_array<bool>(1, down + across);
  int32_t *integers = scratch_array<int32_t>(2, count + 2 * (height + width + 1));
  float *floats = scratch_array<float>(3, width + width * down + (down + 2) * (across + 2));
  // Of four neighbours one can be a peak.
  candidates = scratch_array<Candidate>(4, divide_up(down, 2) * divide_up(across, 2));
  if (!indices || !flags || !integers || !floats || !candidates) return false;
  limits = integers;
  row_marks = limits + count;
  column_marks = row_marks + height;
  rows = {indices, flags, column_marks + width, 0};
  columns = {indices + down, flags + down, rows.before + height + 1, 0};
  line = floats;
  upright = line + width;
  values = upright + width * down;
  // The mean of maps is above the threshold only where one of them is.
  for (int64_t m = 0; m < count; ++m) {
    const float limit = threshold / (gain(maps[m].rows) * gain(maps[m].columns) * kSlack);
    if (limit >= 0.0f) std::memcpy(limits + m, &limit, sizeof limit);
    else limits[m] = -1;  // every cell
  }
  return true;
}

void Search::choose(int64_t channel) {
  const int64_t down = maps->rows.count, across = maps->columns.count;
  std::fill(rows.may_peak, rows.may_peak + down, false);
  std::fill(columns.may_peak, columns.may_peak + across, false);
  for (int64_t m = 0; m < count; ++m) {
    const kvant_maps &own = maps[m];
    mark(own, own.data + channel * own.height * own.width, limits[m], row_marks, column_marks);
    rows.consider(own.rows, own.height, row_marks);
    columns.consider(own.columns, own.width, column_marks);
  }
  rows.choose(down);
  columns.choose(across);
}

// Add one picture's map to `values`.
void Search::add(const kvant_maps &own, const float *cells) {
  int64_t begin = own.width, end = 0;  // columns of cells that are wanted
  for (int64_t j = 0; j < columns.count; ++j) {
    const int64_t first = own.columns.first[columns.index[j]];
    begin = std::min(begin, first);
    end = std::max(end, first + own.columns.terms);
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t row = rows.index[i];
    std::fill(line + begin, line + end, 0.0f);
    add_weighted(own.rows, row, cells + begin, own.width, end - begin, line + begin);
    for (int64_t c = begin; c < end; ++c) upright[c * rows.count + i] = line[c];
  }
  for (int64_t j = 0; j < columns.count; ++j) {
    add_weighted(own.columns, columns.index[j], upright, rows.count, rows.count, at(j, 0));
  }
}

void Search::interpolate(int64_t channel) {
  std::fill(values, values + pitch() * (columns.count + 2), -1.0f);
  for (int64_t j = 0; j < columns.count; ++j) std::fill(at(j, 0), at(j, rows.count), 0.0f);
  for (int64_t m = 0; m < count; ++m) add(maps[m], maps[m].data + channel * maps[m].height * maps[m].width);
  if (count == 1) return;
  for (int64_t j = 0; j < columns.count; ++j) {
    for (float *value = at(j, 0); value < at(j, rows.count); ++value) *value /= static_cast<float>(count);
  }
}

// Fill `candidates`. Neighbours of what may be a peak are neighbours among what is computed, too, or in the border.
int64_t Search::find() {
  int64_t found = 0;
  const int64_t next = pitch();
  for (int64_t j = 0; j < columns.count; ++j) {
    if (!columns.may_peak[columns.index[j]]) continue;
    for (int64_t i = 0; i < rows.count; ++i) {
      const float *here = at(j, i), value = *here;
      if (!rows.may_peak[rows.index[i]] || !(value > threshold)) continue;
      if (value > here[1] && value > here[next] && value > here[next + 1] && value > here[1 - next] &&
          value >= here[-1] && value >= here[-next] && value >= here[-next - 1] && value >= here[next - 1]) {
        candidates[found++] = {value, i, j};
      }
    }
  }
  return found;
}

kvant_peak Search::peak(const Candidate &candidate) const {
  const float *here = at(candidate.column, candidate.row);
  const double x = static_cast<double>(columns.index[candidate.column]) + vertex(here[-pitch()], *here, here[pitch()]);
  const double y = static_cast<double>(rows.index[candidate.row]) + vertex(here[-1], *here, here[1]);
  return {static_cast<float>((x + 0.5) * steps[0] - 0.5), static_cast<float>((y + 0.5) * steps[1] - 0.5), *here};
}

int64_t Search::in_channel(int64_t channel, kvant_peak *peaks) {
  choose(channel);
  if (rows.count == 0 || columns.count == 0) return 0;
  interpolate(channel);
  const int64_t found = find(), kept = std::min(found, most);
  std::partial_sort(candidates, candidates + kept, candidates + found);
  for (int64_t i = 0; i < kept; ++i) peaks[i] = peak(candidates[i]);
  return kept;
}

int32_t check(int64_t count, const kvant_maps *maps, int64_t channels, int64_t most) {
  KVANT_REQUIRE(count >= 1 && channels >= 0 && most >= 0, KVANT_BAD_ARGUMENT);
  int64_t bytes;
  KVANT_REQUIRE(product({channels, most, sizeof(kvant_peak)}, &bytes), KVANT_OVERFLOW);
  for (int64_t m = 0; m < count; ++m) {
    const kvant_maps &own = maps[m];
    KVANT_REQUIRE(own.data, KVANT_NULL_POINTER);
    KVANT_REQUIRE(own.height >= 1 && own.width >= 1, KVANT_BAD_ARGUMENT);
    // Far below 2^63 in every sum of what is allocated.
    for (const int64_t size : {own.height, own.width, own.rows.count, own.columns.count}) {
      KVANT_REQUIRE(size >= 0 && size <= INT32_MAX / 8, KVANT_OVERFLOW);
    }
    KVANT_REQUIRE(product({channels, own.height, own.width, 4}, &bytes), KVANT_OVERFLOW);
    KVANT_REQUIRE(own.rows.count == maps->rows.count && own.columns.count == maps->columns.count, KVANT_BAD_ARGUMENT);
    int32_t status = check_filter(own.rows, own.height);
    if (status == KVANT_OK) status = check_filter(own.columns, own.width);
    KVANT_REQUIRE(status == KVANT_OK, status);
  }
  return KVANT_OK;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_peaks(int64_t count, const kvant_maps *maps, int64_t channels, float threshold, int64_t most,
                               const double steps[2], kvant_peak *peaks, int64_t *bounds) {
  KVANT_REQUIRE(maps && steps && peaks && bounds, KVANT_NULL_POINTER);
  const int32_t status = check(count, maps, channels, most);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const int64_t grain = divide_up(kGrain, maps->rows.count * maps->columns.count + 1);
  const int32_t worst = parallel(channels, grain, [=](int64_t begin, int64_t end) -> int32_t {
    Search search{};
    search.count = count, search.maps = maps;
    search.threshold = threshold, search.most = most, search.steps = steps;
    KVANT_REQUIRE(search.allocate(), KVANT_NO_MEMORY);
    for (int64_t c = begin; c < end; ++c) bounds[c + 1] = search.in_channel(c, peaks + c * most);
    return KVANT_OK;
  });
  KVANT_REQUIRE(worst == KVANT_OK, worst);
  bounds[0] = 0;
  for (int64_t c = 0; c < channels; ++c) {
    std::memmove(peaks + bounds[c], peaks + c * most, static_cast<size_t>(bounds[c + 1]) * sizeof(kvant_peak));
    bounds[c + 1] += bounds[c];
  }
  return KVANT_OK;
}
