#include "../search_step.h"

#include <algorithm>

#include "../checks.h"
#include "clones.h"

namespace amun {
namespace {

// A slot whose sample is done, or that never had one, is marked so until the queue refills it.
constexpr int64_t idle = -1;

template <typename T>
AMUN_CLONES void move_row(T* __restrict x, const T* __restrict x0, const T* __restrict grad, int64_t length,
                          StepMove<Accumulate<T>> move, Accumulate<T> low, Accumulate<T> high) {
  using A = Accumulate<T>;
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) x[i] = T(next_value(A(x[i]), A(x0[i]), A(grad[i]), move, low, high));
}

template <typename T>
AMUN_CLONES StepSums<Accumulate<T>> sum_row(const T* __restrict x, const T* __restrict x0, const T* __restrict grad,
                                            int64_t length) {
  using A = Accumulate<T>;
  constexpr int64_t lanes = 32;  // one running sum per product would wait for each addition before the next
  A gg[lanes] = {}, gd[lanes] = {}, dd[lanes] = {};
  const auto add = [&](int64_t i, int64_t lane) {
    const A g = A(grad[i]), d = A(x[i]) - A(x0[i]);
    gg[lane] += g * g;
    gd[lane] += g * d;
    dd[lane] += d * d;
  };
  int64_t i = 0;
  for (; i + lanes <= length; i += lanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < lanes; ++lane) add(i + lane, lane);
  }
  for (int64_t lane = 0; i + lane < length; ++lane) add(i + lane, lane);
  StepSums<A> sums;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    sums.gg += gg[lane];
    sums.gd += gd[lane];
    sums.dd += dd[lane];
  }
  return sums;
}

template <typename T>
void step_slot(const SearchStepArgs& args, int64_t slot) {
  using A = Accumulate<T>;
  const int64_t sample = args.slots[slot], length = args.row_length;
  if (!is_sample(args, sample)) return;
  T* const x = static_cast<T*>(args.x) + slot * length;
  const T* const x0 = static_cast<const T*>(args.inputs) + sample * length;
  const T* const grad = static_cast<const T*>(args.grad) + slot * length;
  StepMove<A> move;
  const Status status = judge(args, sample, args.adversarial[slot], sum_row(x, x0, grad, length), move);
  if (status == Status::pending) {
    move_row(x, x0, grad, length, move, A(args.low), A(args.high));
    return;
  }
  args.status[sample] = static_cast<int8_t>(status);
  if (status == Status::found) {
    std::copy(x, x + length, static_cast<T*>(args.images) + sample * length);
    args.found_labels[sample] = args.predicted[slot];
  }
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
                     const Tensor& predicted, const Tensor& inputs, const Tensor& labels, Tensor images,
                     Tensor found_labels, Tensor eps, Tensor distance, Tensor round_step, Tensor grad_evals,
                     Tensor status, const Tensor& queue, Tensor cursor, int64_t steps, double step_fraction,
                     double eps_growth, double eps_max, double low, double high) {
  const Tensor grad = torch::stable::contiguous(grad_);
  const SearchStepArgs args = check_search_step(x, slots, slot_labels, grad, adversarial, predicted, inputs, labels,
                                                images, found_labels, eps, distance, round_step, grad_evals, status,
                                                queue, cursor, steps, step_fraction, eps_growth, eps_max, low, high);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, args.row_length));
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    torch::stable::parallel_for(0, args.pool_size, grain, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; ++slot) step_slot<T>(args, slot);
    });
    refill<T>(args);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) { m.impl("search_step_", TORCH_BOX(&search_step_cpu)); }

}  // namespace amun
