// Inner loops of tables, and bytes that are transposed; a part of loops_body.h.
namespace kvant {
namespace KVANT_ISA {
namespace {

template <typename Call>
void with_type(int32_t dtype, const void *x, Call call) {
  switch (dtype) {
    case KVANT_UINT8:
      return call(static_cast<const uint8_t *>(x));
    case KVANT_INT8:
      return call(static_cast<const int8_t *>(x));
    default:
      return call(static_cast<const int16_t *>(x));
  }
}

int32_t lowest_of(int32_t dtype) { return dtype == KVANT_UINT8 ? 0 : dtype == KVANT_INT8 ? -128 : -32768; }

template <typename Entry>
void table_all(int64_t count, const void *x, int32_t dtype, const void *entries, void *y) {
  const Entry *from = static_cast<const Entry *>(entries);
  Entry *to = static_cast<Entry *>(y);
  const int32_t lowest = lowest_of(dtype);
  with_type(dtype, x, [=](const auto *typed) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[typed[i] - lowest];
  });
}

template <typename Entry>
void tables_of(int64_t pixels, int64_t channels, const void *x, int32_t dtype, const void *entries, void *y) {
  const int64_t size = dtype == KVANT_INT16 ? 65536 : 256;
  const Entry *first = static_cast<const Entry *>(entries) - lowest_of(dtype);
  Entry *to = static_cast<Entry *>(y);
  with_type(dtype, x, [=](const auto *typed) {
    for (int64_t i = 0; i < pixels; ++i) {
      const auto *pixel = typed + i * channels;
      for (int64_t c = 0; c < channels; ++c) to[i * channels + c] = first[c * size + pixel[c]];
    }
  });
}

typedef uint8_t Bytes __attribute__((vector_size(kByteTile)));

#if defined(__clang__)
#define KVANT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KVANT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif

// Columns of 16 bytes become rows: pairing up rows 8 apart four times brings each byte to its place.
void transpose_bytes(const uint8_t *x, int64_t stride, uint8_t *y, int64_t width) {
  Bytes a[kByteTile], b[kByteTile];
#pragma GCC unroll 16
  for (int i = 0; i < kByteTile; ++i) __builtin_memcpy(&a[i], x + i * stride, kByteTile);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = KVANT_SHUFFLE(a[i], a[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      b[2 * i + 1] = KVANT_SHUFFLE(a[i], a[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kByteTile; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kByteTile; ++i) __builtin_memcpy(y + i * width, &a[i], kByteTile);
}

constexpr int64_t kTablePixels = 64;

// Of a tile's channels, for as many pixels as make whole vectors: channel by channel.
void tables_of_tile(int64_t channels, const uint8_t *x, uint8_t flip, const uint8_t *entries, uint8_t *y) {
  uint8_t found[kByteTile * kTablePixels];
  for (int64_t i = 0; i < kTablePixels; i += kByteTile) transpose_bytes(x + i * channels, channels, found + i, kTablePixels);
  for (int64_t c = 0; c < kByteTile; ++c) {
    table_of_bytes(kTablePixels, found + c * kTablePixels, flip, entries + c * 256, found + c * kTablePixels);
  }
  for (int64_t i = 0; i < kTablePixels; i += kByteTile) transpose_bytes(found + i, kTablePixels, y + i * channels, channels);
}

// Whole tiles of pixels; the last channels with some of those before.
void tables_to_bytes(int64_t pixels, int64_t channels, const uint8_t *x, int32_t dtype, const uint8_t *entries,
                     uint8_t *y) {
  const uint8_t flip = dtype == KVANT_UINT8 ? 0 : 0x80;
  const int64_t done = channels < kByteTile ? 0 : pixels / kTablePixels * kTablePixels;
  for (int64_t i = 0; i < done; i += kTablePixels) {
    for (int64_t c = 0; c < channels; c += kByteTile) {
      const int64_t first = c + kByteTile <= channels ? c : channels - kByteTile, at = i * channels + first;
      tables_of_tile(channels, x + at, flip, entries + first * 256, y + at);
    }
  }
  tables_of<uint8_t>(pixels - done, channels, x + done * channels, dtype, entries, y + done * channels);
}

void tables(int64_t pixels, int64_t channels, const void *x, int32_t dtype, const void *entries, int64_t element_size,
            void *y) {
  if (element_size == 1 && dtype != KVANT_INT16 && has_tables_of_bytes()) {
    return tables_to_bytes(pixels, channels, static_cast<const uint8_t *>(x), dtype,
                           static_cast<const uint8_t *>(entries), static_cast<uint8_t *>(y));
  }
  if (element_size == 1) return tables_of<uint8_t>(pixels, channels, x, dtype, entries, y);
  if (element_size == 2) return tables_of<uint16_t>(pixels, channels, x, dtype, entries, y);
  if (element_size == 4) return tables_of<uint32_t>(pixels, channels, x, dtype, entries, y);
  tables_of<uint64_t>(pixels, channels, x, dtype, entries, y);
}

void table_to_bytes(int64_t count, const void *x, int32_t dtype, const void *entries, void *y) {
  const uint8_t *from = static_cast<const uint8_t *>(x), *bytes = static_cast<const uint8_t *>(entries);
  uint8_t *to = static_cast<uint8_t *>(y);
  const uint8_t flip = dtype == KVANT_UINT8 ? 0 : 0x80;
  const int64_t done = dtype == KVANT_INT16 ? 0 : table_of_bytes(count, from, flip, bytes, to);
  table_all<uint8_t>(count - done, from + done, dtype, bytes, to + done);
}

void table(int64_t count, const void *x, int32_t dtype, const void *entries, int64_t element_size, void *y) {
  if (element_size == 1) return table_to_bytes(count, x, dtype, entries, y);
  if (element_size == 2) return table_all<uint16_t>(count, x, dtype, entries, y);
  if (element_size == 4) return table_all<uint32_t>(count, x, dtype, entries, y);
  table_all<uint64_t>(count, x, dtype, entries, y);
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
