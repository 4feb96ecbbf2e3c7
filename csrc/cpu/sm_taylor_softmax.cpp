#include "../host/sm_taylor_softmax.h"

#include "clones.h"

namespace amun {
namespace {

// The terms of a block of rows, or of a part of a long row, are computed as one array, which fits the first-level
// cache, and then summed by rows. One loop over terms and sums would wait for the end of every row.
constexpr int64_t block_terms = 1024, least_for_many = 48;
constexpr int64_t bytes_ahead = 8192;  // the processor's own prefetching stops at the end of a page

template <int order, typename T, typename A>
AMUN_CLONES void write_terms(const T* __restrict logits, A* __restrict terms, int64_t count, TaylorRule<A> rule) {
  constexpr int64_t line = 64 / sizeof(T), step = 2 * line;
  int64_t i = 0;
  for (; i + step <= count; i += step) {
    for (int64_t j = i; j < i + step; j += line)
      __builtin_prefetch(reinterpret_cast<const char*>(logits + j) + bytes_ahead);
#pragma omp simd
    for (int64_t j = i; j < i + step; ++j) terms[j] = taylor<order>(A(logits[j]), A(0), rule);
  }
#pragma omp simd
  for (int64_t j = i; j < count; ++j) terms[j] = taylor<order>(A(logits[j]), A(0), rule);
}

// Adds the terms of each row, [rows, count], to four partial sums, [rows, 4]. Reads three elements before the terms.
template <bool many, typename A>
AMUN_CLONES void add_in_quarters(const A* __restrict terms, A* __restrict quarters, int64_t rows, int64_t count) {
  typedef A Four __attribute__((vector_size(4 * sizeof(A)), aligned(sizeof(A)), may_alias));
  const Four none = {}, places = {0, 1, 2, 3};
  const auto left = places >= A(4 - count % 4);  // of the last four terms, those in no whole four
  for (int64_t row = 0; row < rows; ++row, terms += count) {
    Four sum = left ? *reinterpret_cast<const Four*>(terms + count - 4) : none;
    int64_t j = 0;
    if constexpr (many) {
      Four b = none, c = none, d = none;  // sums that do not wait for each other
      for (; j + 16 <= count; j += 16) {
        const Four* const next = reinterpret_cast<const Four*>(terms + j);
        sum += next[0], b += next[1], c += next[2], d += next[3];
      }
      sum += b + (c + d);
    }
    for (; j + 4 <= count; j += 4) sum += *reinterpret_cast<const Four*>(terms + j);
    *reinterpret_cast<Four*>(quarters + 4 * row) += sum;
  }
}

template <int order, typename A>
AMUN_CLONES void divide(const A* __restrict own, const A* __restrict quarters, A* __restrict signal, int64_t rows,
                        TaylorRule<A> rule) {
#pragma omp simd
  for (int64_t row = 0; row < rows; ++row) {
    const A* const four = quarters + 4 * row;
    const A term = taylor<order>(own[row], rule.margin, rule);
    signal[row] = term / (term + ((four[0] + four[1]) + (four[2] + four[3])));
  }
}

template <int order, typename T>
void signal_of_rows(const SmTaylorArgs& args, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const TaylorRule<A> rule = args.rule.as<A>();
  const int64_t classes = args.classes, most = std::max<int64_t>(1, block_terms / classes);
  const auto add = classes < least_for_many ? add_in_quarters<false, A> : add_in_quarters<true, A>;
  alignas(64) A memory[16 + block_terms] = {}, own[block_terms / 2], quarters[2 * block_terms];
  A* const terms = memory + 16;
  for (int64_t first = begin; first < end; first += most) {
    const int64_t rows = std::min(most, end - first);
    const T* const logits = static_cast<const T*>(args.logits) + first * classes;
    std::fill_n(quarters, 4 * rows, A(0));
    for (int64_t from = 0; from < classes; from += block_terms) {  // more than once for a single row only
      const int64_t count = std::min(block_terms, classes - from);
      write_terms<order>(logits + from, terms, rows * count, rule);
      for (int64_t row = 0, sample = first % args.samples; row < rows; ++row) {
        const int64_t label = args.labels[sample];
        if (label < 0 || label >= classes) {  // gives the result of a NaN
          own[row] = std::numeric_limits<A>::quiet_NaN();
        } else if (label >= from && label - from < count) {
          own[row] = A(logits[row * classes + label]);
          terms[row * count + label - from] = 0;  // skipped instead of subtracted later, which would cancel
        }
        sample = sample + 1 == args.samples ? 0 : sample + 1;
      }
      add(terms, quarters, rows, count);
    }
    divide<order>(own, quarters, static_cast<A*>(args.signal) + first, rows, rule);
  }
}

void sm_taylor_softmax_cpu(const Tensor&, ScalarType dtype, const SmTaylorArgs& args) {
  const int64_t grain = std::max<int64_t>(1, 16 * block_terms / args.classes);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_order(args.order, [&](auto terms) {
      torch::stable::parallel_for(0, args.rows, grain,
                                  [&](int64_t begin, int64_t end) { signal_of_rows<terms, T>(args, begin, end); });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) {
  m.impl("sm_taylor_softmax", TORCH_BOX(&sm_taylor_softmax<sm_taylor_softmax_cpu>));
}

}  // namespace amun
