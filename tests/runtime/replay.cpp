// Repeats recorded runs and compares the bytes of every output: replay FILE. See recording.py.
//
// A case is, in numbers of 64 bits: the image's bytes, where in it the calls begin, how many calls, addresses and layers
// there are; where the addresses are, which are offsets so far; for each layer where its address goes, its description,
// its method; for each call its output's place and bytes. Then come the image and the expected outputs.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kvant.h"

namespace {

struct Layer {
  uint64_t slot, description, method;
};

struct Output {
  uint64_t place, bytes;
};

struct Header {
  uint64_t bytes, calls, count, addresses, layers;
};

[[noreturn]] void fail(const char *message, long long number) {
  std::fprintf(stderr, message, number);
  std::exit(2);
}

template <typename T>
std::vector<T> read(std::FILE *file, uint64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, file) != count) fail("the file is cut off\n", 0);
  return values;
}

uint64_t number(const void *address) { return reinterpret_cast<uintptr_t>(address); }

// Runs one case; the number of outputs that differ.
int replay(std::FILE *file, const Header &header) {
  const auto addresses = read<uint64_t>(file, header.addresses);
  const auto layers = read<Layer>(file, header.layers);
  const auto outputs = read<Output>(file, header.count);
  const auto recorded = read<uint8_t>(file, header.bytes);
  uint8_t *image = static_cast<uint8_t *>(std::aligned_alloc(64, (header.bytes + 63) / 64 * 64));
  if (image == nullptr) fail("there is not enough memory\n", 0);
  std::memcpy(image, recorded.data(), header.bytes);
  const auto slot = [image](uint64_t offset) -> uint64_t & { return *reinterpret_cast<uint64_t *>(image + offset); };
  for (const uint64_t address : addresses) slot(address) = number(image + slot(address));
  std::vector<kvant_weights *> packed;
  for (const Layer &layer : layers) {
    const auto *description = reinterpret_cast<const kvant_conv_layer *>(image + layer.description);
    packed.push_back(nullptr);
    const int32_t status = kvant_pack_conv(description, static_cast<int32_t>(layer.method), &packed.back());
    if (status != KVANT_OK) fail("kvant_pack_conv gives %lld\n", status);
    slot(layer.slot) = number(packed.back());
  }
  int64_t failed = 0;
  const auto *calls = reinterpret_cast<const kvant_call *>(image + header.calls);
  const int32_t status = kvant_run(calls, static_cast<int64_t>(header.count), &failed);
  if (status != KVANT_OK) fail("kvant_run gives %lld\n", status);
  int different = 0;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto expected = read<uint8_t>(file, outputs[i].bytes);
    if (std::memcmp(image + outputs[i].place, expected.data(), expected.size()) == 0) continue;
    std::printf("call %zu, step %llu: other bytes\n", i, static_cast<unsigned long long>(calls[i].step));
    ++different;
  }
  for (kvant_weights *weights : packed) kvant_free_weights(weights);
  std::free(image);
  return different;
}

}  // namespace

int main(int count, char **arguments) {
  std::FILE *file = count == 2 ? std::fopen(arguments[1], "rb") : nullptr;
  if (file == nullptr) fail("usage: replay FILE\n", 0);
  Header header;
  int cases = 0, different = 0;
  uint64_t calls = 0;
  for (; std::fread(&header, sizeof header, 1, file) == 1; ++cases, calls += header.count) {
    const int found = replay(file, header);
    if (found != 0) std::printf("case %d: %d outputs differ\n", cases, found);
    different += found;
  }
  std::fclose(file);
  std::printf("%s: %d cases, %llu calls, %d mismatches\n", kvant_isa(), cases, static_cast<unsigned long long>(calls),
              different);
  return different == 0 ? 0 : 1;
}
