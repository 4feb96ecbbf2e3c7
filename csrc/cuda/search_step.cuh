// The kernel body of search_step_: one block per slot. No launch and no torch, so that g++ can run it on CPU threads.
#pragma once

#include "../search_step.h"
#include "block_sum.cuh"

namespace amun {

constexpr int search_step_threads = 256;

template <typename T>
__device__ __forceinline__ void copy_row(T* to, const T* from, int64_t length) {
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) to[i] = from[i];
}

template <typename T>
__global__ void __launch_bounds__(search_step_threads) search_step_kernel(const SearchStepArgs args) {
  using A = Accumulate<T>;
  __shared__ A scratch[3 * search_step_threads / warp_size];
  __shared__ Verdict<A> shared_verdict;
  __shared__ int64_t refill;

  const int64_t slot = blockIdx.x, length = args.row_length;
  const int64_t sample = args.slots[slot];
  T* const x = static_cast<T*>(args.x) + slot * length;

  if (is_sample(args, sample)) {
    const T* const x0 = static_cast<const T*>(args.inputs) + sample * length;
    const T* const grad = static_cast<const T*>(args.grad) + slot * length;
    const Bounds<A> inner = inward_bounds<T>(args);
    StepSums<A> sums;
    for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
      const A g = inward(A(grad[i]), A(x[i]), inner.low, inner.high), d = A(x[i]) - A(x0[i]);
      sums.gg += g * g;
      sums.gd += g * d;
      sums.dd += d * d;
    }
    sums = block_sum(sums, scratch);
    if (threadIdx.x == 0) shared_verdict = judge(args, slot, sample, sums);
    __syncthreads();
    const Verdict<A> verdict = shared_verdict;

    if (verdict.keep) {
      copy_row(static_cast<T*>(args.images) + sample * length, x, length);
      if (threadIdx.x == 0) args.found_labels[sample] = args.predicted[slot];
    }
    if (verdict.status == Status::pending) {
      for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {  // each thread the elements that it has copied
        const A g = inward(A(grad[i]), A(x[i]), inner.low, inner.high);
        x[i] = T(next_value(A(x[i]), A(x0[i]), g, verdict.move, A(args.low), A(args.high)));
      }
      return;
    }
    if (threadIdx.x == 0) args.status[sample] = static_cast<int8_t>(verdict.status);
  }

  __syncthreads();  // every thread has read slots[slot] before it changes
  if (threadIdx.x == 0) {
    // Slots race for the queue: which slot gets which sample is open, that each sample gets one is not. The counter
    // runs past the end of the queue, which is why its readers compare with <.
    const int64_t place = atomicAdd(reinterpret_cast<unsigned long long*>(args.cursor), 1ull);
    refill = place >= 0 && place < args.queue_length ? args.queue[place] : -1;
    if (!is_sample(args, refill)) refill = -1;
    args.slots[slot] = refill;
    if (refill >= 0) args.slot_labels[slot] = args.labels[refill];
  }
  __syncthreads();
  if (refill >= 0) copy_row(x, static_cast<const T*>(args.images) + refill * length, length);
}

}  // namespace amun
