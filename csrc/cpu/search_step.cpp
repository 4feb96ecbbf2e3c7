#include "../search_step.h"

#include <algorithm>

#include "../checks.h"
#include "clones.h"

namespace amun {
namespace {

// A slot whose sample is done, or that never had one, is marked so until the queue refills it.
constexpr int64_t idle = -1;

// `masked`: the rule takes the gradient by `inward`. The others need not pay for its comparisons, a third of a step.
template <bool masked, typename T>
AMUN_CLONES void move_row(T* __restrict x, const T* __restrict x0, const T* __restrict grad, int64_t length,
                          StepMove<Accumulate<T>> move, Bounds<Accumulate<T>> inner, Bounds<Accumulate<T>> box) {
  using A = Accumulate<T>;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    const A g = masked ? inward(A(grad[i]), A(x[i]), inner.low, inner.high) : A(grad[i]);
    x[i] = T(next_value(A(x[i]), A(x0[i]), g, move, box.low, box.high));
  }
}

template <bool masked, typename T>
AMUN_CLONES StepSums<Accumulate<T>> sum_row(const T* __restrict x, const T* __restrict x0, const T* __restrict grad,
                                            int64_t length, Bounds<Accumulate<T>> inner) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = 32;  // one running sum per product would wait for each addition before the next
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
  const int64_t sample = args.slots[slot], length = args.row_length;
  if (!is_sample(args, sample)) return;
  T* const x = static_cast<T*>(args.x) + slot * length;
  const T* const x0 = static_cast<const T*>(args.inputs) + sample * length;
  const T* const grad = static_cast<const T*>(args.grad) + slot * length;
  const Bounds<A> inner = inward_bounds<T>(args);
  Record<A> record = read_record<A>(args, slot, sample);
  const Verdict<A> verdict = judge(args, record, sum_row<masked>(x, x0, grad, length, inner));
  write_record(args, sample, record);
  if (verdict.keep) {
    std::copy(x, x + length, static_cast<T*>(args.images) + sample * length);
    args.found_labels[sample] = args.predicted[slot];
  }
  if (verdict.status == Status::pending) {
    move_row<masked>(x, x0, grad, length, verdict.move, inner, {A(args.low), A(args.high)});
    return;
  }
  args.status[sample] = static_cast<int8_t>(verdict.status);
  args.slots[slot] = idle;
}

template <typename T>
void refill(const SearchStepArgs& args) {
  STD_TORCH_CHECK(*args.cursor >= 0, "cursor must not be negative, got ", *args.cursor);
  for (int64_t slot = 0; slot < args.pool_size && *args.cursor < args.queue_length; ++slot) {
    if (is_sample(args, args.slots[slot])) continue;
    const int64_t sample = args.queue[*args.cursor], length = args.row_length;
    STD_TORCH_CHECK(is_sample(args, sample), "queue must hold rows of the book, [0, ", args.book_size, "), got ",
                    sample);
    ++*args.cursor;
    args.slots[slot] = sample;
    args.slot_labels[slot] = args.labels[sample];
    const T* const start = static_cast<const T*>(args.images) + sample * length;
    std::copy(start, start + length, static_cast<T*>(args.x) + slot * length);
  }
}

void search_step_cpu(Tensor x, Tensor slots, Tensor slot_labels, const Tensor& grad_, const Tensor& adversarial,
                     const Tensor& predicted, const Tensor& margin, const Tensor& inputs, const Tensor& labels,
                     Tensor images, Tensor found_labels, Tensor eps, Tensor distance, Tensor round_step,
                     Tensor grad_evals, Tensor status, const Tensor& queue, Tensor cursor, const std::string& rule,
                     int64_t steps, double step_fraction, double last_step_fraction, double eps_growth,
                     double last_eps_growth, double eps_max, double start, double overshoot, double pull_back,
                     double low, double high) {
  const Tensor grad = torch::stable::contiguous(grad_);
  const SearchStepArgs args = check_search_step(
      x, slots, slot_labels, grad, adversarial, predicted, margin, inputs, labels, images, found_labels, eps, distance,
      round_step, grad_evals, status, queue, cursor, rule, steps, step_fraction, last_step_fraction, eps_growth,
      last_eps_growth, eps_max, start, overshoot, pull_back, low, high);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, args.row_length));
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    torch::stable::parallel_for(0, args.pool_size, grain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot)
        takes_inward(args.rule) ? step_slot<true, T>(args, slot) : step_slot<false, T>(args, slot);
    });
    refill<T>(args);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) { m.impl("search_step_", TORCH_BOX(&search_step_cpu)); }

}  // namespace amun
