// The kernel body of sm_taylor_softmax: so many lanes of a warp per row as have about four classes each. No launch and
// no torch, so that g++ can run it on CPU threads.
#pragma once

#include "../sm_taylor_softmax.h"
#include "block_sum.cuh"

namespace amun {

constexpr int sm_taylor_threads = 128;

// A power of two: the rows of a warp lie side by side in memory, and each sums within its own lanes.
AMUN_HD int sm_taylor_lanes(int64_t classes) {
  int lanes = 1;
  while (lanes < warp_size && lanes * 4 < classes) lanes *= 2;
  return lanes;
}

template <int order, typename T>
__global__ void __launch_bounds__(sm_taylor_threads) sm_taylor_kernel(const SmTaylorArgs args) {
  using A = Accumulate<T>;
  const int lanes = sm_taylor_lanes(args.classes);
  const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, row = thread / lanes;
  const int64_t label = row < args.rows ? args.labels[row % args.samples] : 0;
  const bool known = label >= 0 && label < args.classes;
  const T* const logits = static_cast<const T*>(args.logits) + row * args.classes;
  const TaylorRule<A> rule = args.rule.as<A>();

  A others = 0;
  if (row < args.rows)  // and no return, because the lanes beyond the last row shuffle too
    for (int64_t j = thread % lanes; j < args.classes; j += lanes)
      if (j != label) others += taylor<order>(A(logits[j]), A(0), rule);
  for (int offset = lanes / 2; offset; offset /= 2) others += __shfl_xor_sync(full_warp, others, offset);
  if (row >= args.rows || thread % lanes != 0) return;
  // An unknown label has no answer: the same one as a NaN.
  const A own = known ? taylor<order>(A(logits[label]), rule.margin, rule) : std::numeric_limits<A>::quiet_NaN();
  static_cast<A*>(args.signal)[row] = own / (own + others);
}

}  // namespace amun
