#include "padding.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "common.h"
#include "loops.h"
#include "threads.h"

namespace kvant {
namespace {

constexpr int64_t kBytesPerCall = 1 << 16;  // less is not worth a second thread

// The caller's padded input, kept for its next use. Algorithms use `scratch` on the same thread, hence not one of those.
struct Buffer {
  uint8_t *data = nullptr;
  int64_t bytes = 0;

  ~Buffer() { std::free(data); }

  bool reserve(int64_t wanted) {
    if (wanted <= bytes) return true;
    std::free(data);
    const int64_t rounded = round_up(wanted, 4096);
    data = static_cast<uint8_t *>(std::aligned_alloc(64, static_cast<size_t>(rounded)));
    bytes = data == nullptr ? 0 : rounded;
    return data != nullptr;
  }
};

thread_local Buffer padded_buffer;

struct Copy {
  const Placement *from;
  bool centred;        // as int16, the zero point subtracted
  int64_t rows, columns;
  int64_t element;     // bytes of what is written
  int64_t pixel;       // the same of a whole pixel
  uint8_t *to;

  int padding() const { return from->dtype == KVANT_UINT8 && !centred ? from->zero_point : 0; }
};

// Pixels side by side, from pixels that lie x_stride apart.
void copy_pixels(const Copy &copy, const uint8_t *x, int64_t count, uint8_t *to) {
  const Placement &from = *copy.from;
  const bool dense = from.x_stride == from.channels;
  const int64_t runs = dense ? 1 : count, length = dense ? count * from.channels : from.channels;
  const int64_t step = from.x_stride * size_of(from.dtype);
  for (int64_t i = 0; i < runs; ++i, x += step, to += copy.pixel) {
    if (copy.centred) {
      loops().centre16(length, x, from.dtype, 1, from.zero_point, reinterpret_cast<int16_t *>(to));
    } else {
      std::memcpy(to, x, static_cast<size_t>(length * copy.element));
    }
  }
}

void pad(const Copy &copy, uint8_t *to, int64_t pixels) {
  std::memset(to, copy.padding(), static_cast<size_t>(pixels * copy.pixel));
}

// Pixels `step` apart, padding between them.
void spread_row(const Copy &copy, const uint8_t *x, uint8_t *to) {
  const Placement &from = *copy.from;
  pad(copy, to, copy.columns);
  for (int64_t j = 0; j < from.size[1]; ++j) {
    const int64_t column = j * from.step[1] + from.pads[1];
    if (column < 0 || column >= copy.columns) continue;
    copy_pixels(copy, x + j * from.x_stride * size_of(from.dtype), 1, to + column * copy.pixel);
  }
}

void copy_row(const Copy &copy, int64_t image, int64_t row) {
  const Placement &from = *copy.from;
  uint8_t *to = copy.to + (image * copy.rows + row) * copy.columns * copy.pixel;
  const int64_t at = row - from.pads[0];
  if (at < 0 || at % from.step[0] != 0 || at / from.step[0] >= from.size[0]) return pad(copy, to, copy.columns);
  const int64_t pixel = from.x_stride * size_of(from.dtype);
  const uint8_t *x = from.x + (image * from.size[0] + at / from.step[0]) * from.size[1] * pixel;
  if (from.step[1] != 1) return spread_row(copy, x, to);
  const int64_t first = std::clamp<int64_t>(from.pads[1], 0, copy.columns), skipped = first - from.pads[1];
  const int64_t count = std::clamp<int64_t>(from.size[1] - skipped, 0, copy.columns - first);
  pad(copy, to, first);
  if (count > 0) copy_pixels(copy, x + skipped * pixel, count, to + first * copy.pixel);
  pad(copy, to + (first + count) * copy.pixel, copy.columns - first - count);
}

}  // namespace

bool is_plain(const Placement &placement) {
  return placement.step[0] == 1 && placement.step[1] == 1 && placement.pads[0] >= 0 && placement.pads[1] >= 0;
}

Padded as_it_lies(const Placement &placement) {
  const int64_t row = placement.size[1] * placement.x_stride;
  return {placement.x, placement.size[0] * row, row, placement.x_stride};
}

bool can_read_in_place(const Placement &placement, Format format, const Reach &reach) {
  if (format == Format::kCentred16 && placement.dtype != KVANT_INT16) return false;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t needed = axis == 0 ? reach.rows : reach.columns;
    if (placement.pads[axis] != 0 || placement.step[axis] != 1 || needed > placement.size[axis]) return false;
  }
  const int64_t last = (placement.batch * placement.size[0] * placement.size[1] - 1) * placement.x_stride;
  const int64_t last_read = (((placement.batch - 1) * placement.size[0] + reach.rows - 1) * placement.size[1] +
                             reach.columns - 1) * placement.x_stride;
  return last_read + reach.slack <= last;
}

int32_t place(const Placement &placement, Format format, const Reach &reach, bool in_place, Padded *padded) {
  if (in_place && can_read_in_place(placement, format, reach)) {
    *padded = as_it_lies(placement);
    return KVANT_OK;
  }
  Copy copy{};
  copy.from = &placement;
  copy.centred = format == Format::kCentred16 && placement.dtype != KVANT_INT16;
  copy.rows = reach.rows;
  copy.columns = reach.columns;
  copy.element = copy.centred ? 2 : size_of(placement.dtype);
  copy.pixel = placement.channels * copy.element;
  const int64_t slack = reach.slack * copy.element;
  int64_t bytes;
  KVANT_REQUIRE(product({placement.batch, reach.rows, reach.columns, copy.pixel, 2}, &bytes), KVANT_OVERFLOW);
  bytes /= 2;
  KVANT_REQUIRE(padded_buffer.reserve(bytes + slack + 64), KVANT_NO_MEMORY);
  copy.to = padded_buffer.data;
  std::memset(copy.to + bytes, 0, static_cast<size_t>(slack));
  const int64_t row = reach.columns * placement.channels;
  *padded = {copy.to, reach.rows * row, row, placement.channels};
  const int64_t grain = divide_up(kBytesPerCall, std::max<int64_t>(1, row * copy.element));
  return parallel(placement.batch * reach.rows, grain, [&copy](int64_t begin, int64_t end) -> int32_t {
    for (int64_t i = begin; i < end; ++i) copy_row(copy, i / copy.rows, i % copy.rows);
    return KVANT_OK;
  });
}

}  // namespace kvant
