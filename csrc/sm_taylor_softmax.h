// The arguments of sm_taylor_softmax. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// T is the dtype of the logits, A = Accumulate<T> that of the result.
struct SmTaylorArgs {
  int64_t rows, samples, classes;  // R = leading dimensions times N, N, C
  int64_t order;                   // terms of the series
  TaylorRule<double> rule;
  const void* logits;     // T [R, C]
  const int64_t* labels;  // [N]     of row r: that of sample r % N
  void* signal;           // A [R]
};

constexpr int least_taylor_order = 2, most_taylor_order = 8;

// From an order known at run time to a constant: dispatch_order(order, [&](auto n) { taylor<n>(...); }).
template <int order = least_taylor_order, typename Body>
void dispatch_order(int64_t wanted, Body&& body) {
  if (wanted == order)
    body(std::integral_constant<int, order>{});
  else if constexpr (order < most_taylor_order)
    dispatch_order<order + 1>(wanted, body);
}

}  // namespace amun
