// Runs the body of a CUDA kernel on CPU threads: for machines without a GPU, and for ThreadSanitizer.
//
// Include it before the kernel's .cuh and compile with g++ -std=c++20 -pthread. A block has one std::thread for each of
// its CUDA threads; blocks run one after another. As on the hardware, a thread that has returned is not waited for, and
// a shuffle that names a lane which is not there has no answer: here it throws.
//
// Of CUDA it knows one dimension of blocks and two of threads, static __shared__ memory, __syncthreads, __shfl_xor_sync
// over a full warp, and atomicAdd. It does not see races between blocks.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block at a time has it to itself

struct ThreadIndex {
  unsigned x, y = 0;
};
inline thread_local ThreadIndex threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {

constexpr unsigned warp_size = 32;

// Where all threads that have not left meet. Not std::barrier: with libstdc++ 12, threads that dropped out of one left
// others waiting for ever.
class Barrier {
 public:
  explicit Barrier(unsigned threads) : expected_(threads) {}

  void meet() {
    std::unique_lock lock(mutex_);
    const unsigned meeting = meeting_;
    ++arrived_;
    if (!finish()) finished_.wait(lock, [&] { return meeting_ != meeting; });
  }

  void leave() {
    const std::lock_guard lock(mutex_);
    --expected_;
    finish();
  }

 private:
  bool finish() {
    if (arrived_ < expected_) return false;
    arrived_ = 0, ++meeting_;
    finished_.notify_all();
    return true;
  }

  std::mutex mutex_;
  std::condition_variable finished_;
  unsigned expected_, arrived_ = 0, meeting_ = 0;
};

// What a lane shows to the others of its warp: the bits of a value, and in which of its shuffles it showed them.
struct Shown {
  unsigned long long bits = 0;
  unsigned shuffle = 0;
};

struct Warp {
  explicit Warp(unsigned lanes) : barrier(lanes) {}
  Barrier barrier;
  // Two boards by turns: whoever writes on one again has met everybody since they read it.
  std::array<std::array<Shown, warp_size>, 2> boards;
};

struct Block {
  explicit Block(unsigned threads) : barrier(threads) {
    for (unsigned first = 0; first < threads; first += warp_size)
      warps.emplace_back(std::min(warp_size, threads - first));
  }
  Barrier barrier;
  std::deque<Warp> warps;  // a deque, because barriers do not move
};

inline thread_local Block* block;
inline thread_local unsigned place, shuffles;  // the thread's number in its block, those of one row after another

struct Shape {
  Shape(unsigned columns, unsigned rows = 1) : x(columns), y(rows) {}
  unsigned x, y;
};

template <typename Body>
void launch(unsigned blocks, Shape shape, Body body) {
  const unsigned threads = shape.x * shape.y;
  for (unsigned index = 0; index < blocks; ++index) {
    Block shared(threads);
    std::exception_ptr failure;
    std::mutex failure_mutex;
    const auto run = [&](unsigned thread) {
      threadIdx = {thread % shape.x, thread / shape.x}, blockIdx = {index}, blockDim = {shape.x, shape.y};
      gridDim = {blocks, 1}, block = &shared, place = thread, shuffles = 0;
      try {
        body();
      } catch (...) {
        const std::lock_guard lock(failure_mutex);
        failure = std::current_exception();
      }
      shared.warps[thread / warp_size].barrier.leave();
      shared.barrier.leave();
    };
    std::vector<std::thread> running;
    for (unsigned thread = 0; thread < threads; ++thread) running.emplace_back(run, thread);
    for (std::thread& thread : running) thread.join();
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace cuda_emulator

inline void __syncthreads() { cuda_emulator::block->barrier.meet(); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  using namespace cuda_emulator;
  static_assert(sizeof(T) <= sizeof(Shown::bits));
  if (mask != ~0u) throw std::invalid_argument("the emulator shuffles full warps only");
  const unsigned lane = place % warp_size, source = lane ^ lane_mask;
  Warp& warp = block->warps[place / warp_size];
  auto& board = warp.boards[++shuffles % 2];
  board[lane].shuffle = shuffles;
  std::memcpy(&board[lane].bits, &value, sizeof(T));
  warp.barrier.meet();
  if (board[source].shuffle != shuffles)
    throw std::logic_error("a shuffle asks for lane " + std::to_string(source) + ", which is not there");
  std::memcpy(&value, &board[source].bits, sizeof(T));
  return value;
}

// Relaxed, as on the hardware: an atomic counter orders nothing else.
template <typename T>
T atomicAdd(T* address, T value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}
