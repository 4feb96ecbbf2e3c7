// The kernel body of masked_sgd_: one block per sgd_block elements. No launch and no torch, so that g++ can run it on
// CPU threads.
#pragma once

#include "../masked_sgd.h"
#include "pack.cuh"

namespace amun {

constexpr int masked_sgd_threads = 256;

template <int width, typename T, typename M>
__device__ __forceinline__ void update_pack(const MaskedSgdTensor& tensor, int64_t i,
                                            const SgdRule<Accumulate<T>>& rule) {
  Pack<T, width> param = pack<width, T>(tensor.param, i);
  const Pack<T, width> grad = pack<width, T>(tensor.grad, i);
  Pack<M, width> momentum{};
  if (tensor.momentum && !rule.first) momentum = pack<width, M>(tensor.momentum, i);
  Pack<uint8_t, width> mask{};
  if (tensor.mask) mask = pack<width, uint8_t>(static_cast<const void*>(tensor.mask), i);
#pragma unroll
  for (int j = 0; j < width; ++j) update(param.at[j], momentum.at[j], grad.at[j], !tensor.mask || mask.at[j], rule);
  pack<width, T>(tensor.param, i) = param;
  if (tensor.momentum) pack<width, M>(tensor.momentum, i) = momentum;
}

template <typename T, typename M>
__global__ void __launch_bounds__(masked_sgd_threads) masked_sgd_kernel(const __grid_constant__ MaskedSgdTable table) {
  constexpr int width = pack_width<T>;
  static_assert(sgd_block % width == 0);
  // a copy, because the compiler would reload the entry after every store, which might alias it
  const MaskedSgdTensor tensor =
      tensor_of(table.device_list ? table.device_list : table.inline_list, table.count, blockIdx.x);
  const SgdRule<Accumulate<T>> rule = table.rule.as<Accumulate<T>>();
  const int64_t begin = (blockIdx.x - tensor.first_block) * sgd_block, left = tensor.length - begin;
  const int64_t end = begin + (left < sgd_block ? left : sgd_block);
  const bool aligned = is_aligned<width, T>(tensor.param) && is_aligned<width, T>(tensor.grad) &&
                       is_aligned<width, M>(tensor.momentum) && is_aligned<width, uint8_t>(tensor.mask);
  const int64_t packed = aligned ? end - (end - begin) % width : begin;
  for (int64_t i = begin + threadIdx.x * width; i < packed; i += blockDim.x * width)
    update_pack<width, T, M>(tensor, i, rule);
  for (int64_t i = packed + threadIdx.x; i < end; i += blockDim.x) update_pack<1, T, M>(tensor, i, rule);
}

}  // namespace amun
