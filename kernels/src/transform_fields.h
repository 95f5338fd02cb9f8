// Primes of the number-theoretic transform, their tables, and the proof that its 16-bit lanes never overflow.
#pragma once

#include <cstdint>

#include "transform.h"

namespace kvant {
namespace transform {

constexpr int64_t power(int64_t base, int64_t exponent, int64_t prime) {
  int64_t result = 1;
  for (base %= prime; exponent > 0; exponent /= 2, base = base * base % prime) {
    if (exponent % 2 == 1) result = result * base % prime;
  }
  return result;
}

constexpr int64_t inverse_of(int64_t value, int64_t prime) { return power(value, prime - 2, prime); }

constexpr int16_t centred(int64_t value, int64_t prime) {
  const int64_t rest = (value % prime + prime) % prime;
  return static_cast<int16_t>(rest > prime / 2 ? rest - prime : rest);
}

// Of an odd number modulo 2^16; each step of Newton's doubles the number of right bits, of which there are 3 at first.
constexpr int16_t inverse16(int64_t odd) {
  uint32_t result = static_cast<uint32_t>(odd);
  for (int i = 0; i < 3; ++i) result *= 2 - static_cast<uint32_t>(odd) * result;
  return static_cast<int16_t>(static_cast<uint16_t>(result));
}

constexpr Residue residue(int64_t value, int64_t prime) {
  const int16_t scaled = centred(value % prime * 65536, prime);
  return {scaled, static_cast<int16_t>(static_cast<uint16_t>(scaled * inverse16(prime)))};
}

// Of order kSize: its power kSize / 2 is -1.
constexpr int64_t root_of(int64_t prime) {
  for (int64_t base = 2;; ++base) {
    const int64_t root = power(base, (prime - 1) / kSize, prime);
    if (power(root, kSize / 2, prime) == prime - 1) return root;
  }
}

constexpr Modulus modulus_of(int64_t prime) {
  Modulus result{};
  result.prime = static_cast<int16_t>(prime);
  result.inverse = inverse16(prime);
  result.nearest = static_cast<int16_t>((32768 + prime / 2) / prime);
  result.wrap = centred(65536, prime);
  const int64_t root = root_of(prime);
  for (int64_t i = 0; i < kSize; ++i) {
    result.forward[i] = residue(power(root, i, prime), prime);
    result.backward[i] = residue(power(root, kSize - i, prime), prime);
    result.weights[i] = residue(65536 / kPoints * power(root, kSize - i, prime), prime);
  }
  return result;
}

// The bounds of every step modulo p, whose names are those of transform_body.h. n = `nearest`, q = 2^15 / n.

// R. reduce(x) = x - p k with k = floor(n x / 2^15 + 1/2): x is within q / 2 of k q, and p within |p - q| of q. |k| <=
// n, since |x| <= 2^15. Rounded up by 1 + n for the divisions here. (p k may leave 16 bits, the difference does not.)
constexpr int64_t reduced(int64_t p) {
  const int64_t n = (32768 + p / 2) / p, q = 32768 / n;
  return q / 2 + n * (p > q ? p - q : q - p) + n + 1;
}
// product(a, b) for |a| <= bound: (a * value - m p) / 2^16 with |value| < p / 2, |m| <= 2^15.
constexpr int64_t multiplied(int64_t bound, int64_t p) { return p / 2 + 1 + bound * (p / 2) / 65536 + 1; }

struct FourBounds {
  int64_t sum, middle;  // elements 0 and 2 of transform4, elements 1 and 3
};
// Elements within `first` (a) and `others` (b, c, d).
constexpr FourBounds four(int64_t first, int64_t others, int64_t p) {
  return {first + 3 * others, first + others + multiplied(2 * others, p)};
}
constexpr int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t most(const FourBounds &bounds) { return most(bounds.sum, bounds.middle); }

// What transform16 of elements within R may reach, intermediate values included.
constexpr int64_t transformed(Elements elements, int64_t p) {
  const bool half = elements == Elements::kHalf;
  const int64_t small = reduced(p);
  const int64_t first = half ? most(2 * small, small + multiplied(small, p)) : most(four(small, small, p));
  const int64_t twisted = multiplied(first, p);
  // In row 0 of the second stage all are untwisted, in the others the first one is. Of a half, row 0's last one is as it
  // was, the three before it are reduced, and no other row's.
  const int64_t row =
      half ? most(3 * small + first, 2 * small + multiplied(small + first, p)) : most(four(small, small, p));
  return most(first, most(row, most(four(half ? first : small, twisted, p))));
}

// What quarter16 of elements within `input` may reach; `twists` multiply all of them between its stages, or not all.
constexpr int64_t quartered(int64_t input, bool all, int64_t p) {
  const int64_t first = most(four(input, input, p)), twisted = multiplied(first, p);
  const int64_t second = most(four(twisted, twisted, p));
  return most(first, all ? second : most(second, most(most(four(first, first, p)), most(four(first, twisted, p)))));
}

// Weights are within 127, pixels within 255, what the second transform of a tile or a kernel starts from is within R.
constexpr bool safe(int64_t p) {
  return p % kSize == 1 && transformed(Elements::kAny, p) <= 32767 && transformed(Elements::kHalf, p) <= 32767 &&
         quartered(127, true, p) <= 32767 && quartered(255, false, p) <= 32767;
}

struct Field {
  Modulus moduli[kPrimes];
  Residue first_inverse;  // modulo the second prime

  constexpr int64_t product() const { return int64_t{moduli[0].prime} * moduli[1].prime; }
};

constexpr Field field_of(int64_t first, int64_t second) {
  return {{modulus_of(first), modulus_of(second)}, residue(inverse_of(first, second), second)};
}

// The last step: v = r1 + p1 t with t = reduce(product(r2 - r1)) is the true sum modulo P and within R1 + p1 R2 < P.
// The sum is within P, too, so that they differ by -P, 0 or P. It is in [low, high], which is narrower than P: if v is
// there they are equal, if v is above the sum is v - P, if v is below it is v + P. All of that fits int32.
constexpr bool joins(int64_t first, int64_t second) {
  return reduced(first) + reduced(second) <= 32767 && reduced(first) + first * reduced(second) < first * second &&
         2 * first * second < (int64_t{1} << 31);
}

// 2^15 / 4 and 2^15 / 3 have primes nearby, so that the quotient by them takes one multiplication.
static_assert(safe(8161) && safe(8209) && joins(8161, 8209));
static_assert(safe(10993) && safe(11057) && joins(10993, 11057));

constexpr Field kFields[] = {field_of(8161, 8209), field_of(10993, 11057)};

}  // namespace transform
}  // namespace kvant
