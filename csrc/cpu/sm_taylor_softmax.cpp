#include "../host/sm_taylor_softmax.h"

#include "clones.h"

namespace amun {
namespace {

// ------------------------------------------------------------------------------------------ many classes: row by row

template <int order, typename T, typename A>
AMUN_CLONES A sum_of_others(const T* __restrict logits, int64_t classes, int64_t label, TaylorRule<A> rule) {
  using Index = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;  // as wide as A, for vector comparisons
  const Index own = static_cast<Index>(label), end = static_cast<Index>(classes);
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Index j = 0; j < end; ++j) {
    const A term = taylor<order>(A(logits[j]), A(0), rule);
    sum += j == own ? A(0) : term;  // skipped instead of subtracted later, which would cancel
  }
  return sum;
}

template <int order, typename T>
void long_rows(const SmTaylorArgs& args, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const TaylorRule<A> rule = args.rule.as<A>();
  for (int64_t row = begin; row < end; ++row) {
    const T* const logits = static_cast<const T*>(args.logits) + row * args.classes;
    const int64_t label = args.labels[row % args.samples];
    A own = std::numeric_limits<A>::quiet_NaN(), others = 0;
    if (label >= 0 && label < args.classes) {  // an unknown label gives the result of a NaN
      own = taylor<order>(A(logits[label]), rule.margin, rule);
      others = sum_of_others<order>(logits, args.classes, label, rule);
    }
    static_cast<A*>(args.signal)[row] = own / (own + others);
  }
}

// ---------------------------------------------------------------------------------------- few classes: block by block

// A row of few classes is shorter than a vector. So the terms of a block of rows are computed as one array, which fits
// the first-level cache, and then summed by rows.
constexpr int64_t block_terms = 2048, short_row = 48;

template <int order, typename T, typename A>
AMUN_CLONES void write_terms(const T* __restrict logits, A* __restrict terms, int64_t count, TaylorRule<A> rule) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) terms[i] = taylor<order>(A(logits[i]), A(0), rule);
}

// Four partial sums per row, [rows, 4], since a row is shorter than a vector.
template <typename A>
AMUN_CLONES void add_in_quarters(const A* __restrict terms, A* __restrict quarters, int64_t rows, int64_t classes) {
  typedef A Four __attribute__((vector_size(4 * sizeof(A)), aligned(sizeof(A)), may_alias));
  if (classes < 4) {
    for (int64_t row = 0; row < rows; ++row, terms += classes, quarters += 4) {
      quarters[0] = terms[0], quarters[1] = terms[1], quarters[3] = 0;
      quarters[2] = classes == 3 ? terms[2] : A(0);
    }
    return;
  }
  const int64_t whole = classes - classes % 4;
  const Four none = {}, places = {0, 1, 2, 3};
  const auto left = places >= A(4 - classes % 4);  // of the last four terms, those in no whole four
  for (int64_t row = 0; row < rows; ++row, terms += classes) {
    Four sum = left ? *reinterpret_cast<const Four*>(terms + classes - 4) : none;
    for (int64_t j = 0; j < whole; j += 4) sum += *reinterpret_cast<const Four*>(terms + j);
    *reinterpret_cast<Four*>(quarters + 4 * row) = sum;
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
void short_rows(const SmTaylorArgs& args, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  const TaylorRule<A> rule = args.rule.as<A>();
  const int64_t classes = args.classes, most = block_terms / classes;
  alignas(64) A terms[block_terms], own[block_terms / 2], quarters[2 * block_terms];
  int64_t sample = begin < end ? begin % args.samples : 0;
  for (int64_t first = begin; first < end; first += most) {
    const int64_t rows = std::min(most, end - first);
    const T* const logits = static_cast<const T*>(args.logits) + first * classes;
    write_terms<order>(logits, terms, rows * classes, rule);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t label = args.labels[sample];
      const bool known = label >= 0 && label < classes;
      const int64_t at = row * classes + (known ? label : 0);
      own[row] = known ? A(logits[at]) : std::numeric_limits<A>::quiet_NaN();
      terms[at] = 0;
      sample = sample + 1 == args.samples ? 0 : sample + 1;
    }
    add_in_quarters(terms, quarters, rows, classes);
    divide<order>(own, quarters, static_cast<A*>(args.signal) + first, rows, rule);
  }
}

void sm_taylor_softmax_cpu(const Tensor&, ScalarType dtype, const SmTaylorArgs& args) {
  const int64_t grain = std::max<int64_t>(1, 16 * block_terms / args.classes);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_order(args.order, [&](auto terms) {
      const auto rows = args.classes < short_row ? short_rows<terms, T> : long_rows<terms, T>;
      torch::stable::parallel_for(0, args.rows, grain, [&](int64_t begin, int64_t end) { rows(args, begin, end); });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) {
  m.impl("sm_taylor_softmax", TORCH_BOX(&sm_taylor_softmax<sm_taylor_softmax_cpu>));
}

}  // namespace amun
