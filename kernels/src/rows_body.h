// Inner loops of softmax and norms; a part of loops_body.h.
namespace kvant {
namespace KVANT_ISA {
namespace {

void softmax(int64_t size, int32_t *__restrict q, const int32_t *exponentials, float inverse_scale,
             float *__restrict shares) {
  int32_t largest = q[0];
  for (int64_t i = 1; i < size; ++i) largest = largest > q[i] ? largest : q[i];
  int64_t total = 0;
  for (int64_t i = 0; i < size; ++i) {
    q[i] = exponentials[largest - q[i]];
    total += q[i];
  }
  const float sum = static_cast<float>(total);
  for (int64_t i = 0; i < size; ++i) shares[i] = static_cast<float>(q[i]) / sum * inverse_scale;
}

template <typename Sum>
void add_moments_of(int64_t count, const int32_t *q, Moments *moments) {
  Sum sum = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += q[i];
    squares += static_cast<Sum>(q[i]) * q[i];
  }
  moments->sum += sum;
  moments->squares += squares;
}

void add_moments(int64_t count, const int32_t *q, bool bytes, Moments *moments) {
  const auto function = bytes ? add_moments_of<int32_t> : add_moments_of<int64_t>;
  function(count, q, moments);
}

template <typename Sum>
void normalize_of(const Line &line, const int32_t *__restrict q, const float *gamma, const float *beta,
                  float *__restrict values) {
  const Sum size = static_cast<Sum>(line.size), sum = static_cast<Sum>(line.sum);
  if (line.inner == 1) {
    for (int64_t i = 0; i < line.size; ++i) {
      values[i] = (static_cast<float>(size * q[i] - sum) * line.factor * gamma[i] + beta[i]) / line.output_scale;
    }
    return;
  }
  for (int64_t first = 0; first < line.size; first += line.inner, ++gamma, ++beta) {
    for (int64_t i = first; i < first + line.inner; ++i) {
      values[i] = (static_cast<float>(size * q[i] - sum) * line.factor * *gamma + *beta) / line.output_scale;
    }
  }
}

void normalize(const Line &line, const int32_t *q, const float *gamma, const float *beta, float *values) {
  const auto function = line.narrow ? normalize_of<int32_t> : normalize_of<int64_t>;
  function(line, q, gamma, beta, values);
}

}  // namespace
}  // namespace KVANT_ISA
}  // namespace kvant
