// Sums over a block of threads, given to every thread.
#pragma once

#include "../amun_math.h"

namespace amun {

constexpr int warp_size = 32;
constexpr unsigned full_warp = 0xffffffffu;

template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int offset = warp_size / 2; offset; offset /= 2) value += __shfl_xor_sync(full_warp, value, offset);
  return value;
}

// The three sums at once, so that the block meets twice and not six times. `scratch` holds 3 values per warp.
template <typename A>
__device__ StepSums<A> block_sum(StepSums<A> sums, A* scratch) {
  sums = {warp_sum(sums.gg), warp_sum(sums.gd), warp_sum(sums.dd)};
  const int warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size;
  if (threadIdx.x % warp_size == 0) {
    scratch[3 * warp] = sums.gg;
    scratch[3 * warp + 1] = sums.gd;
    scratch[3 * warp + 2] = sums.dd;
  }
  __syncthreads();
  sums = {};
  for (int other = 0; other < warps; ++other) {
    sums.gg += scratch[3 * other];
    sums.gd += scratch[3 * other + 1];
    sums.dd += scratch[3 * other + 2];
  }
  return sums;
}

}  // namespace amun
