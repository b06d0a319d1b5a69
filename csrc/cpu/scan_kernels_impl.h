// The loops of ScanKernels over a vector type `Vec`. The including file selects its instruction set with a pragma and
// then defines `Vec` in an anonymous namespace.
//
// No function here may be one that another file could emit under the same name (no std, no inline functions first
// defined here outside the anonymous namespace). The linker would keep one copy of it, and every processor would run
// AVX-512 code.
//
// Vec: kLanes floats.
//   broadcast(x); load<D>(p): kLanes logits in order; load_two<D>(p, a, b): 2 * kLanes logits in any order;
//   max(x, acc): acc where x is NaN; min(a, b); select(bits, x): -inf where the bit is 0;
//   at_least(x, bound): bits, 0 where x is NaN; store(p); reduce_max().

namespace unite {
namespace {

template <Dtype D>
constexpr int32_t element_size() {
  return D == Dtype::kFloat32 ? 4 : 2;
}

// The low `count` bits of the eligibility of `count` ids from `id` on; both divide 32 evenly.
inline uint32_t eligible_bits(const uint32_t* eligible, int32_t id, int32_t count) {
  const uint32_t word = eligible[id >> 5] >> (id & 31);
  return count == 32 ? word : word & ((1u << count) - 1u);
}

// Up to kLanes logits without reading past them.
template <Dtype D>
inline Vec load_partial(const char* source, int32_t count) {
  alignas(64) char buffer[Vec::kLanes * 4] = {};
  memcpy(buffer, source, static_cast<size_t>(count) * element_size<D>());
  return Vec::template load<D>(buffer);
}

// The logits of [id, min(id + kLanes, end)), -inf where they are not eligible.
template <Dtype D>
inline Vec load_eligible(const RowView& row, int32_t id, int32_t end) {
  const char* source = static_cast<const char*>(row.data) + static_cast<int64_t>(id) * element_size<D>();
  uint32_t bits = eligible_bits(row.eligible, id, Vec::kLanes);
  if (end - id >= Vec::kLanes) return Vec::select(bits, Vec::template load<D>(source));
  bits &= (1u << (end - id)) - 1u;
  return Vec::select(bits, load_partial<D>(source, end - id));
}

inline bool all_eligible(const uint32_t* eligible, int32_t begin, int32_t block) {
  uint32_t all = ~0u;
  for (int32_t i = 0; i < block / 32; ++i) all &= eligible[begin / 32 + i];
  return all == ~0u;
}

template <Dtype D>
inline float full_block_max(const char* source, int32_t block) {
  const Vec lowest = Vec::broadcast(negative_infinity());
  Vec m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
  constexpr int32_t kStep = 4 * Vec::kLanes;
  for (int32_t i = 0; i < block; i += kStep) {
    Vec a, b, c, d;
    Vec::template load_two<D>(source, a, b);
    Vec::template load_two<D>(source + 2 * Vec::kLanes * element_size<D>(), c, d);
    m0 = Vec::max(a, m0);
    m1 = Vec::max(b, m1);
    m2 = Vec::max(c, m2);
    m3 = Vec::max(d, m3);
    source += kStep * element_size<D>();
  }
  return Vec::max(Vec::max(m0, m1), Vec::max(m2, m3)).reduce_max();
}

template <Dtype D>
inline float masked_block_max(const RowView& row, int32_t begin, int32_t end) {
  Vec largest = Vec::broadcast(negative_infinity());
  for (int32_t id = begin; id < end; id += Vec::kLanes) largest = Vec::max(load_eligible<D>(row, id, end), largest);
  return largest.reduce_max();
}

template <Dtype D>
void block_maxima_of(const RowView& row, int32_t begin, int32_t end, int32_t block, int32_t* maxima) {
  const char* data = static_cast<const char*>(row.data);
  const float largest = largest_finite(D);
  for (int32_t at = begin; at < end; at += block) {
    float value;
    if (end - at >= block && all_eligible(row.eligible, at, block))
      value = full_block_max<D>(data + static_cast<int64_t>(at) * element_size<D>(), block);
    else
      value = masked_block_max<D>(row, at, end - at < block ? end : at + block);
    *maxima++ = signed_order(sanitize(value, largest));
  }
}

void block_maxima(const RowView& row, int32_t begin, int32_t end, int32_t block, int32_t* maxima) {
  switch (row.dtype) {
    case Dtype::kFloat32:
      return block_maxima_of<Dtype::kFloat32>(row, begin, end, block, maxima);
    case Dtype::kBFloat16:
      return block_maxima_of<Dtype::kBFloat16>(row, begin, end, block, maxima);
    case Dtype::kFloat16:
      return block_maxima_of<Dtype::kFloat16>(row, begin, end, block, maxima);
  }
}

inline int32_t count_at_least(const int32_t* values, int32_t n, int32_t pivot) {
  int32_t count = 0;
  for (int32_t i = 0; i < n; ++i) count += values[i] >= pivot ? 1 : 0;
  return count;
}

// Bisection over the integers: a count over all maxima is a few vector compares, much faster than nth_element at these
// sizes. Any value with at least k above it is a bound, so it stops a little early.
int32_t reached_by(const int32_t* maxima, int32_t n, int32_t k) {
  if (n < k) return INT32_MIN;
  int32_t low = INT32_MAX, high = INT32_MIN;
  for (int32_t i = 0; i < n; ++i) {
    low = maxima[i] < low ? maxima[i] : low;
    high = maxima[i] > high ? maxima[i] : high;
  }
  if (count_at_least(maxima, n, high) >= k) return high;
  // At least k reach low, fewer than k reach high.
  const int32_t enough = k + k / 4;
  for (;;) {
    const uint32_t distance = static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
    if (distance <= 1) return low;
    const int32_t middle = static_cast<int32_t>(static_cast<uint32_t>(low) + distance / 2);
    const int32_t count = count_at_least(maxima, n, middle);
    if (count < k) {
      high = middle;
    } else {
      low = middle;
      if (count <= enough) return low;
    }
  }
}

template <Dtype D>
int32_t collect_of(const RowView& row, int32_t begin, int32_t end, float bound, uint64_t* keys) {
  const Vec least = Vec::broadcast(bound);
  int32_t found = 0;
  for (int32_t base = begin; base < end; base += Vec::kLanes) {
    uint32_t hits = Vec::at_least(load_eligible<D>(row, base, end), least);
    while (hits != 0) {
      const int32_t id = base + __builtin_ctz(hits);
      keys[found++] = make_key(load_logit(row.data, D, id), id);
      hits &= hits - 1;
    }
  }
  return found;
}

int32_t collect(const RowView& row, int32_t begin, int32_t end, float bound, uint64_t* keys) {
  switch (row.dtype) {
    case Dtype::kFloat32:
      return collect_of<Dtype::kFloat32>(row, begin, end, bound, keys);
    case Dtype::kBFloat16:
      return collect_of<Dtype::kBFloat16>(row, begin, end, bound, keys);
    case Dtype::kFloat16:
      return collect_of<Dtype::kFloat16>(row, begin, end, bound, keys);
  }
  return 0;
}

// exp of x <= 0 to about 2e-7 relative, 0 below -87. It has no branches and no calls, so that the loop below
// vectorises, and no fused multiply-add, so that it is the same on every processor.
inline float exp_nonpositive(float x) {
  const float clamped = x > -87.0f ? x : -87.0f;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to an integer in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  const float e = poly * (r * r) + r + 1.0f;
  const float scale = float_from_bits((float_bits(shifted) + 127u) << 23);
  return x > -87.0f ? e * scale : 0.0f;
}

template <Dtype D>
void sum_exp_of(const RowView& row, int32_t begin, int32_t end, float* largest, double* sum) {
  constexpr int32_t kChains = 16;  // partial sums, the same number for every Vec
  const Vec lowest = Vec::broadcast(negative_infinity());
  const Vec finite = Vec::broadcast(largest_finite(D));
  Vec maximum = lowest;
  for (int32_t id = begin; id < end; id += Vec::kLanes) maximum = Vec::max(load_eligible<D>(row, id, end), maximum);
  *largest = sanitize(maximum.reduce_max(), largest_finite(D));
  *sum = 0.0;
  if (*largest == negative_infinity()) return;

  for (int32_t at = begin; at < end; at += kMaxBlock) {
    alignas(64) float values[kMaxBlock];
    for (int32_t i = 0; i < kMaxBlock; i += Vec::kLanes) {
      const Vec value = at + i < end ? load_eligible<D>(row, at + i, end) : lowest;
      Vec::min(Vec::max(value, lowest), finite).store(values + i);
    }
    float chains[kChains] = {};
    for (int32_t i = 0; i < kMaxBlock; i += kChains)
      for (int32_t c = 0; c < kChains; ++c) chains[c] += exp_nonpositive(values[i + c] - *largest);
    for (int32_t c = 0; c < kChains; ++c) *sum += static_cast<double>(chains[c]);
  }
}

void sum_exp(const RowView& row, int32_t begin, int32_t end, float* largest, double* sum) {
  switch (row.dtype) {
    case Dtype::kFloat32:
      return sum_exp_of<Dtype::kFloat32>(row, begin, end, largest, sum);
    case Dtype::kBFloat16:
      return sum_exp_of<Dtype::kBFloat16>(row, begin, end, largest, sum);
    case Dtype::kFloat16:
      return sum_exp_of<Dtype::kFloat16>(row, begin, end, largest, sum);
  }
}

constexpr ScanKernels kKernels = {block_maxima, reached_by, collect, sum_exp};

}  // namespace
}  // namespace unite
