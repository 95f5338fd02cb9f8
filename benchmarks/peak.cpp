// What the processor multiplies at most: a loop of vpdpbusd alone, 64 products each. Built and called by kernels.py.
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace {

constexpr long kRounds = 100000;
constexpr int kChains = 24;
constexpr int kRepeats = 20, kUncounted = 5;  // until each thread is on a processor of its own, and that at its frequency

// Keeps the calling thread off a processor, if it may use others. Linux leaves two threads that wait for each other on one
// processor for many milliseconds, and half of the peak is measured.
void keep_off(int processor) {
  cpu_set_t others;
  if (processor < 0 || sched_getaffinity(0, sizeof others, &others) != 0) return;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof others, &others);
}

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

// Threads begin each repeat together.
class Start {
 public:
  explicit Start(int threads) : threads_(threads) {}

  void wait(int repeat) {
    arrived_.fetch_add(1);
    while (arrived_.load() < (repeat + 1) * threads_) std::this_thread::yield();
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
};

void multiply(int callers, int *sink, Start *start) {
  keep_off(callers);
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    start->wait(repeat);
    if (repeat < kRepeats) chains<kChains>(sink);
  }
}

}  // namespace

// Billions of products a second of so many threads, the median of some repeats.
extern "C" double peak(int threads) {
  std::vector<std::thread> others;
  std::vector<int> sinks(static_cast<size_t>(threads) * 64);
  Start start(threads);
  for (int t = 1; t < threads; ++t) {
    others.emplace_back(multiply, sched_getcpu(), &sinks[static_cast<size_t>(t) * 64], &start);
  }
  std::vector<double> seconds;
  start.wait(0);
  for (int repeat = 1; repeat <= kRepeats; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    chains<kChains>(&sinks[0]);
    start.wait(repeat);  // for the last one
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (repeat > kUncounted) seconds.push_back(taken.count());
  }
  for (std::thread &other : others) other.join();
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return 1e-9 * kRounds * kChains * 64 * threads / seconds[seconds.size() / 2];
}
