// Sums over the lanes of a warp and over a block.
#pragma once

#include "../amun_math.h"

namespace amun {

constexpr int warp_size = 32;
constexpr unsigned full_warp = 0xffffffffu;

// The lanes of a warp for a row of `pieces`, with `share` pieces each if the warp has enough lanes. A power of two, so
// that rows in one warp sum over their own lanes.
inline unsigned lanes_for(int64_t pieces, int64_t share) {
  unsigned lanes = 1;
  while (lanes < warp_size && lanes * share < pieces) lanes *= 2;
  return lanes;
}

// The sum over groups of `lanes` lanes, returned to each of them. Every lane of the warp must call it.
template <typename A>
__device__ __forceinline__ A lane_sum(A value, int lanes = warp_size) {
  for (int offset = lanes / 2; offset; offset /= 2) value += __shfl_xor_sync(full_warp, value, offset);
  return value;
}

// The sums over the block, in two functions with a barrier between them: every warp stores its sums, then one thread
// adds them. `scratch` has an entry per warp.
template <typename A>
__device__ __forceinline__ void store_warp_sums(const StepSums<A>& sums, StepSums<A>* scratch) {
  const StepSums<A> warp{lane_sum(sums.gg), lane_sum(sums.gd), lane_sum(sums.dd), lane_sum(sums.xx)};
  if (threadIdx.x % warp_size == 0) scratch[threadIdx.x / warp_size] = warp;
}

template <typename A>
__device__ __forceinline__ StepSums<A> reduce_warp_sums(const StepSums<A>* scratch) {
  StepSums<A> sums;
  for (unsigned warp = 0; warp < blockDim.x / warp_size; ++warp) sums.add(scratch[warp]);
  return sums;
}

}  // namespace amun
