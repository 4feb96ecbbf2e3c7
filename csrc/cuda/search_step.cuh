// The kernel body of search_step_: one block per slot. No launch and no torch, so that g++ can run it on CPU threads.
#pragma once

#include "../search_step.h"
#include "pack.cuh"
#include "sums.cuh"

namespace amun {

constexpr int most_search_step_threads = 512;

// Packs of a row that a thread keeps between the sums and the move, with their gradients in shared memory. As many as
// fit in 64 registers: with more, too few blocks fit on a multiprocessor to hide the latency of loads.
template <typename T>
constexpr int packs_per_thread = sizeof(T) == 2   ? 1
                                 : sizeof(T) == 4 ? 3
                                                  : 2;

// As many threads as keep the whole row, so that it is read once. It depends only on the length, and so does the
// rounding of the sums.
template <typename T>
unsigned search_step_threads(int64_t length) {
  constexpr int64_t each = packs_per_thread<T> * warp_size;
  const int64_t warps = (packs_of<T>(length) + each - 1) / each;
  return warps * warp_size < most_search_step_threads ? (warps ? warps : 1) * warp_size : most_search_step_threads;
}

template <typename T>
bool are_whole(const SearchStepArgs& args) {
  return are_whole<T>(args.row_length, args.x) && are_whole<T>(args.row_length, args.grad) &&
         are_whole<T>(args.row_length, args.inputs) && are_whole<T>(args.row_length, args.images);
}

template <typename T>
struct CachedPack {
  Pack<T> x, x0;
};

template <typename T, bool whole>
__global__ void __launch_bounds__(most_search_step_threads, whole && sizeof(T) < 8 ? 2 : 1)
    search_step_kernel(const SearchStepArgs args) {
  using A = Accumulate<T>;
  constexpr int width = pack_width<T>, held = packs_per_thread<T>;
  __shared__ Pack<T> grad_cache[held][most_search_step_threads];
  __shared__ StepSums<A> scratch[most_search_step_threads / warp_size];
  __shared__ StepDecision<A> shared_decision;
  __shared__ int64_t refill;

  const int64_t slot = blockIdx.x, length = args.row_length, packs = packs_of<T>(length);
  const int64_t sample = args.sample_index[slot];
  T* const x = static_cast<T*>(args.x) + slot * length;
  T* const images = static_cast<T*>(args.images);

  if (is_sample(args, sample)) {
    const T* const x0 = static_cast<const T*>(args.inputs) + sample * length;
    const T* const grad = static_cast<const T*>(args.grad) + slot * length;
    const Bounds<A> inner = inward_bounds<T>(args), box{A(args.low), A(args.high)};
    // The row in parts that the block keeps. The packs of a warp are adjacent, so they share one address.
    const int part = held * blockDim.x;
    const int own = threadIdx.x / warp_size * held * warp_size + threadIdx.x % warp_size;
    CachedPack<T> kept[held];
    const auto read = [&](int begin) {
#pragma unroll
      for (int k = 0; k < held; ++k) {
        const int i = begin + own + k * warp_size;
        kept[k] = {load<whole>(x, i, length), load<whole>(x0, i, length)};
        grad_cache[k][threadIdx.x] = load<whole>(grad, i, length);
      }
    };

    StepSums<A> sums;
    int begin = 0;
    for (;; begin += part) {
      read(begin);
#pragma unroll
      for (int k = 0; k < held; ++k)
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const A at = A(kept[k].x.at[j]);
          sums.add(inward(A(grad_cache[k][threadIdx.x].at[j]), at, inner.low, inner.high), at, A(kept[k].x0.at[j]));
        }
      if (begin + part >= packs) break;
    }
    store_warp_sums(sums, scratch);
    __syncthreads();
    if (threadIdx.x == 0) shared_decision = decide_step(args, slot, sample, reduce_warp_sums(scratch));
    __syncthreads();

    const StepDecision<A> decision = shared_decision;
    const bool moves = decision.status == Status::pending;
    // backwards from the part in the registers: what was read last is most likely still in the cache
    for (; decision.keep || moves; read(begin -= part)) {
#pragma unroll
      for (int k = 0; k < held; ++k) {
        const int i = begin + own + k * warp_size;
        if (decision.keep) store<whole>(images + sample * length, i, length, kept[k].x);
        if (!moves) continue;
        Pack<T> next;
#pragma unroll
        for (int j = 0; j < width; ++j) {
          const A at = A(kept[k].x.at[j]), g = inward(A(grad_cache[k][threadIdx.x].at[j]), at, inner.low, inner.high);
          next.at[j] = T(next_value(at, A(kept[k].x0.at[j]), g, decision.update, box.low, box.high));
        }
        store<whole>(x, i, length, next);
      }
      if (begin == 0) break;
    }
    if (moves) return;
  }

  __syncthreads();  // every thread has read sample_index[slot] before it changes
  if (threadIdx.x == 0) {
    // Slots take from the queue in any order, but each sample once. The counter runs past the end of the queue, so its
    // readers compare with <.
    const int64_t place = atomicAdd(reinterpret_cast<unsigned long long*>(args.queue_position), 1ull);
    refill = place >= 0 && place < args.queue_length ? args.queue[place] : -1;
    if (!is_sample(args, refill)) refill = -1;
    args.sample_index[slot] = refill;
    if (refill >= 0) args.slot_labels[slot] = args.labels[refill];
  }
  __syncthreads();
  if (refill < 0) return;
  for (int64_t i = threadIdx.x; i < packs; i += blockDim.x)
    store<whole>(x, i, length, load<whole>(images + refill * length, i, length));
}

}  // namespace amun
