// The kernel body of sm_taylor_softmax: a thread per row of few classes, several lanes of a warp per row of many. No
// launch and no torch, so that g++ can run it on CPU threads.
#pragma once

#include "../sm_taylor_softmax.h"
#include "pack.cuh"
#include "sums.cuh"

namespace amun {

constexpr int sm_taylor_threads = 128;

// A lane for about eight loads, enough to overlap.
template <int width>
unsigned sm_taylor_lanes(int64_t classes) {
  return lanes_for(classes / width, 8);
}

// The widest load that divides every row, as a constant: dispatch_width<T>(args, [&](auto width) { ... }).
template <typename T, int width = pack_width<T>, typename Body>
void dispatch_width(const SmTaylorArgs& args, Body&& body) {
  if constexpr (width == 1)
    body(std::integral_constant<int, 1>{});
  else if (args.classes % width == 0 && is_aligned<width, T>(args.logits))
    body(std::integral_constant<int, width>{});
  else
    dispatch_width<T, width / 2>(args, body);
}

// blockDim is {lanes, rows}.
template <int order, int width, typename T>
__global__ void __launch_bounds__(sm_taylor_threads) sm_taylor_kernel(const SmTaylorArgs args) {
  using A = Accumulate<T>;
  const int lane = threadIdx.x, lanes = blockDim.x;
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool exists = row < args.rows;  // no return: lanes beyond the last row must shuffle too
  const int64_t classes = exists ? args.classes : 0;
  const int64_t label = exists ? args.labels[row % args.samples] : -1;
  const T* const logits = static_cast<const T*>(args.logits) + row * args.classes;
  const TaylorRule<A> rule = args.rule.as<A>();
  // an unknown label gives the result of a NaN
  const bool known = label >= 0 && label < classes;
  const A own = known ? taylor<order>(A(logits[label]), rule.margin, rule) : std::numeric_limits<A>::quiet_NaN();

  A others = 0;
#pragma unroll 4
  for (int64_t j = lane * width; j < classes; j += lanes * width) {
    const Pack<T, width> part = read_pack<width>(logits, j);
#pragma unroll
    for (int k = 0; k < width; ++k)
      if (j + k != label) others += taylor<order>(A(part.at[k]), A(0), rule);
  }
  others = lane_sum(others, lanes);
  if (exists && lane == 0) static_cast<A*>(args.signal)[row] = own / (own + others);
}

}  // namespace amun
