// The kernel body of attack_loss: as many lanes of a warp per row as it has packs. No launch and no torch, so that g++
// can run it on CPU threads.
#pragma once

#include "../attack_loss.h"
#include "pack.cuh"
#include "sums.cuh"

namespace amun {

constexpr int attack_loss_threads = 128;
constexpr int held_logits = 32;  // of a lane, in registers, so that a row of up to 1,024 classes is read once

template <typename T>
unsigned attack_loss_lanes(int64_t classes) {
  return lanes_for(packs_of<T>(classes), 1);
}

// The template arguments of the kernel, as constants: dispatch_attack_loss<T>(args, [&](auto loss, auto whole) { ...
// }).
template <typename T, typename Body>
void dispatch_attack_loss(const AttackLossArgs& args, Body&& body) {
  const auto with = [&](auto loss) {
    if (are_whole<T>(args.classes, args.logits) && are_whole<T>(args.classes, args.grad_logits))
      body(loss, std::true_type{});
    else
      body(loss, std::false_type{});
  };
  if (args.loss == Loss::margin)
    with(std::integral_constant<Loss, Loss::margin>{});
  else
    with(std::integral_constant<Loss, Loss::cross_entropy>{});
}

template <typename A>
__device__ __forceinline__ Rival<A> warp_max_rival(Rival<A> rival, int lanes) {
  for (int offset = lanes / 2; offset; offset /= 2) {
    const Rival<A> other{__shfl_xor_sync(full_warp, rival.logit, offset),
                         __shfl_xor_sync(full_warp, rival.index, offset)};
    rival = max_rival(rival, other);
  }
  return rival;
}

// blockDim is {lanes, rows}.
template <Loss loss, bool whole, typename T>
__global__ void __launch_bounds__(attack_loss_threads) attack_loss_kernel(const AttackLossArgs args) {
  using A = Accumulate<T>;
  constexpr int width = pack_width<T>, held = held_logits / width;
  using Values = Pack<A, width>;
  constexpr A infinity = std::numeric_limits<A>::infinity();
  const int lane = threadIdx.x, lanes = blockDim.x;
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool exists = row < args.rows;  // no return: lanes beyond the last row must shuffle too
  const int classes = exists ? static_cast<int>(args.classes) : 0;
  const T* const logits = static_cast<const T*>(args.logits) + row * args.classes;
  T* const grad = static_cast<T*>(args.grad_logits) + row * args.classes;

  const int64_t label = exists ? args.labels[row] : -1;
  const bool known = label >= 0 && label < classes;  // an unknown label gives the result of a NaN
  const A own = known ? A(logits[label]) : std::numeric_limits<A>::quiet_NaN();
  const int place = known ? static_cast<int>(label) : -1;

  // -infinity in place of the label's logit and beyond the last is never the rival
  const auto read = [&](int i) {
    const Pack<T> part = load<whole>(logits, i, classes, T(-infinity));
    Values values;
#pragma unroll
    for (int j = 0; j < width; ++j) values.at[j] = i * width + j == place ? -infinity : A(part.at[j]);
    return values;
  };
  Values kept[held];
#pragma unroll
  for (int k = 0; k < held; ++k) kept[k] = read(k * lanes + lane);
  // `body` for every pack of the lane. It changes the kept packs; those of a longer row are read again.
  const auto each = [&](auto&& body) {
#pragma unroll
    for (int k = 0; k < held; ++k) body(k * lanes + lane, kept[k], false);
    for (int i = held * lanes + lane; i * width < classes; i += lanes) {
      Values values = read(i);
      body(i, values, true);
    }
  };

  Rival<A> rival{kept[0].at[0], lane * width};
  each([&](int i, const Values& values, bool) {
#pragma unroll
    for (int j = 0; j < width; ++j) rival = max_later_rival(rival, Rival<A>{values.at[j], i * width + j});
  });
  rival = warp_max_rival(rival, lanes);
  if (exists && lane == 0) write_result(args, row, own, label, rival);

  const auto weigh = [&](int i, Values& values) {
#pragma unroll
    for (int j = 0; j < width; ++j) values.at[j] = loss_weight(loss, values.at[j], i * width + j, rival);
  };
  A others = 0;
  each([&](int i, Values& values, bool) {
    weigh(i, values);
#pragma unroll
    for (int j = 0; j < width; ++j) others += values.at[j];
  });
  const A share = A(1) / lane_sum(others, lanes);
  const bool climbs = has_direction(own, rival);
  each([&](int i, Values& values, bool reread) {
    if (reread) weigh(i, values);
    Pack<T> part;
#pragma unroll
    for (int j = 0; j < width; ++j)
      part.at[j] = T(!climbs ? A(0) : i * width + j == place ? A(-1) : values.at[j] * share);
    store<whole>(grad, i, classes, part);
  });
}

}  // namespace amun
