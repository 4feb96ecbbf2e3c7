#include "../host/search_step.h"

#include "clones.h"

namespace amun {
namespace {

// `masked`: the rule uses the gradient by `inward`, whose comparisons would cost the others a third of a step.
template <bool masked, typename T>
AMUN_CLONES void move_row(T* __restrict x, const T* __restrict x0, const T* __restrict grad, int64_t length,
                          StepUpdate<Accumulate<T>> update, Bounds<Accumulate<T>> inner, Bounds<Accumulate<T>> box) {
  using A = Accumulate<T>;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const A g = masked ? inward(A(grad[i]), A(x[i]), inner.low, inner.high) : A(grad[i]);
    x[i] = T(next_value(A(x[i]), A(x0[i]), g, update, box.low, box.high));
  }
}

template <bool masked, typename T>
AMUN_CLONES StepSums<Accumulate<T>> sum_row(const T* __restrict x, const T* __restrict x0, const T* __restrict grad,
                                            int64_t length, Bounds<Accumulate<T>> inner) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = 32;  // with a single running sum each addition would wait for the one before
  A gg[lanes] = {}, gd[lanes] = {}, dd[lanes] = {}, xx[lanes] = {};
  const auto add = [&](int64_t i, int64_t lane) {
    const A at = A(x[i]), g = masked ? inward(A(grad[i]), at, inner.low, inner.high) : A(grad[i]), d = at - A(x0[i]);
    gg[lane] += g * g;
    gd[lane] += g * d;
    dd[lane] += d * d;
    xx[lane] += at * at;
  };
  int64_t i = 0;
  for (; i + lanes <= length; i += lanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < lanes; ++lane) add(i + lane, lane);
  }
  for (int64_t lane = 0; i + lane < length; ++lane) add(i + lane, lane);
  StepSums<A> sums;
  for (int64_t lane = 0; lane < lanes; ++lane) sums.add({gg[lane], gd[lane], dd[lane], xx[lane]});
  return sums;
}

template <bool masked, typename T>
void step_slot(const SearchStepArgs& args, int64_t slot) {
  using A = Accumulate<T>;
  const int64_t sample = args.sample_index[slot], length = args.row_length;
  if (!is_sample(args, sample)) return;
  T* const x = static_cast<T*>(args.x) + slot * length;
  const T* const x0 = static_cast<const T*>(args.inputs) + sample * length;
  const T* const grad = static_cast<const T*>(args.grad) + slot * length;
  const Bounds<A> inner = inward_bounds<T>(args);
  const StepDecision<A> decision = decide_step(args, slot, sample, sum_row<masked>(x, x0, grad, length, inner));
  if (decision.keep) std::copy(x, x + length, static_cast<T*>(args.images) + sample * length);
  if (decision.status == Status::pending)
    move_row<masked>(x, x0, grad, length, decision.update, inner, {A(args.low), A(args.high)});
  else
    args.sample_index[slot] = -1;  // idle, until the queue refills it
}

template <typename T>
void refill(const SearchStepArgs& args) {
  STD_TORCH_CHECK(*args.queue_position >= 0, "queue_position must not be negative, got ", *args.queue_position);
  for (int64_t slot = 0; slot < args.batch_size && *args.queue_position < args.queue_length; ++slot) {
    if (is_sample(args, args.sample_index[slot])) continue;
    const int64_t sample = args.queue[*args.queue_position], length = args.row_length;
    STD_TORCH_CHECK(is_sample(args, sample), "queue must hold rows of the samples, [0, ", args.num_samples, "), got ",
                    sample);
    ++*args.queue_position;
    args.sample_index[slot] = sample;
    args.slot_labels[slot] = args.labels[sample];
    const T* const start = static_cast<const T*>(args.images) + sample * length;
    std::copy(start, start + length, static_cast<T*>(args.x) + slot * length);
  }
}

void search_step_cpu(const Tensor&, ScalarType dtype, const SearchStepArgs& args) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, args.row_length));
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    torch::stable::parallel_for(0, args.batch_size, grain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot)
        uses_inward(args.rule) ? step_slot<true, T>(args, slot) : step_slot<false, T>(args, slot);
    });
    refill<T>(args);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) { m.impl("search_step_", TORCH_BOX(&search_step<search_step_cpu>)); }

}  // namespace amun
