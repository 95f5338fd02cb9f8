// What the processor multiplies at most: a loop of vpdpbusd alone, 64 products each. Built and run by kernels.py.
#include <immintrin.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr long kRounds = 4000000;
constexpr int kChains = 24;

// In registers only: the compiler would spill an array of this size, but not a vector a step of the recursion.
template <int kLeft, typename... Sums>
void chains(int *sink, Sums... sums) {
  if constexpr (kLeft > 0) {
    return chains<kLeft - 1>(sink, sums..., _mm512_setzero_si512());
  } else {
    const __m512i ones = _mm512_set1_epi8(1);
    for (long n = 0; n < kRounds; ++n) {
      (([&] { __asm__("vpdpbusd %1, %1, %0" : "+v"(sums) : "v"(ones)); })(), ...);
    }
    ((*sink += _mm512_reduce_add_epi32(sums)), ...);
  }
}

void multiply(int *sink) { chains<kChains>(sink); }

}  // namespace

int main(int, char **arguments) {
  const int threads = std::atoi(arguments[1]);
  std::vector<std::thread> others;
  std::vector<int> sinks(static_cast<size_t>(threads) * 64);
  const auto start = std::chrono::steady_clock::now();
  for (int t = 1; t < threads; ++t) others.emplace_back(multiply, &sinks[static_cast<size_t>(t) * 64]);
  multiply(&sinks[0]);
  for (std::thread &other : others) other.join();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%.1f\n", 1e-9 * kRounds * kChains * 64 * threads / seconds.count());
}
