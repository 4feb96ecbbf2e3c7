// The kernel body of attack_loss: one warp per row. No launch and no torch, so that g++ can run it on CPU threads.
#pragma once

#include "../attack_loss.h"
#include "block_sum.cuh"

namespace amun {

constexpr int attack_loss_threads = 128;

template <typename A>
__device__ __forceinline__ Rival<A> warp_strongest(Rival<A> rival) {
  for (int offset = warp_size / 2; offset; offset /= 2) {
    const Rival<A> other{__shfl_xor_sync(full_warp, rival.logit, offset),
                         __shfl_xor_sync(full_warp, rival.index, offset)};
    rival = stronger(rival, other);
  }
  return rival;
}

template <typename T>
__global__ void __launch_bounds__(attack_loss_threads) attack_loss_kernel(const AttackLossArgs args) {
  using A = Accumulate<T>;
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / warp_size) + threadIdx.x / warp_size;
  if (row >= args.rows) return;  // whole warps leave together
  const int lane = threadIdx.x % warp_size;
  const T* const logits = static_cast<const T*>(args.logits) + row * args.classes;
  T* const grad = static_cast<T*>(args.grad_logits) + row * args.classes;

  const int64_t label = args.labels[row];
  const bool known = label >= 0 && label < args.classes;  // an unknown label has no answer: the same one as a NaN
  const A own = known ? A(logits[label]) : std::numeric_limits<A>::quiet_NaN();
  Rival<A> rival;
  for (int64_t j = lane; j < args.classes; j += warp_size)
    if (j != label) rival = stronger(rival, Rival<A>{A(logits[j]), j});
  rival = warp_strongest(rival);
  if (lane == 0) write_verdict(args, row, own, label, rival);

  if (!has_direction(own, rival)) {
    for (int64_t j = lane; j < args.classes; j += warp_size) grad[j] = T(0);
    return;
  }
  A others = 0;
  if (args.loss == Loss::cross_entropy)
    for (int64_t j = lane; j < args.classes; j += warp_size)
      if (j != label) others += exponential(A(logits[j]) - rival.logit);
  others = warp_sum(others);
  for (int64_t j = lane; j < args.classes; j += warp_size)
    grad[j] = T(loss_gradient(args.loss, A(logits[j]), j, label, rival, others));
}

}  // namespace amun
