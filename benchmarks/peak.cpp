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

void multiply(int *sink) {
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sums[i] = _mm512_setzero_si512();
  for (long n = 0; n < kRounds; ++n) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(sums[i]) : "v"(ones));
  }
  for (int i = 0; i < kChains; ++i) *sink += _mm512_reduce_add_epi32(sums[i]);
}

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
