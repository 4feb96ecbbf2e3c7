// What search_step_ works on, and how one sample's fate is decided. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// How the three sums and the margin become the next iterate. pgd ends at its first adversarial point, the others make
// `steps` steps and keep the closest. With `given` the caller has computed the next iterate: it comes in place of grad.
enum class Rule : int32_t { pgd, ddn, deepfool, given };

// Two tables. The pool has a row per slot of the batch [B], the book a row per sample [N]; slot b works on sample
// slots[b]. T is the dtype of the images, A = Accumulate<T> that of eps and distance.
struct SearchStepArgs {
  int64_t pool_size;   // B
  int64_t book_size;   // N
  int64_t row_length;  // D, the elements of one image
  int64_t queue_length;
  // pool
  void* x;                   // T [B, D]  the iterates
  int64_t* slots;            // [B]       the sample in each slot, -1 when idle
  int64_t* slot_labels;      // [B]       its true label
  const void* grad;          // T [B, D]
  const bool* adversarial;   // [B]
  const int64_t* predicted;  // [B]
  const void* margin;        // A [B]     logits left to go
  // book
  const void* inputs;     // T [N, D]  the originals
  const int64_t* labels;  // [N]
  void* images;           // T [N, D]  where each search starts, then the closest example so far
  int64_t* found_labels;  // [N]
  void* eps;              // A [N]     0: to be estimated from the first gradient
  void* distance;         // A [N]     of the closest example so far, else infinite
  int32_t* round_step;    // [N]       steps made, by pgd at this radius
  int32_t* grad_evals;    // [N]
  int8_t* status;         // [N]       a Status
  const int64_t* queue;   // [Q]       the samples to search, in order
  int64_t* cursor;        // [1]       how many of them have been handed out
  // rule
  Rule rule;
  int32_t steps;
  double step_fraction, last_step_fraction, eps_growth, last_eps_growth, eps_max, start, overshoot, pull_back;
  double low, high;
};

// The order is public: amun_ext.search names these numbers.
enum class Status : int8_t { pending = 0, found = 1, exhausted = 2, no_gradient = 3 };

// A slot or queue entry that names no sample counts as none, so that no index leads outside the book.
AMUN_HD bool is_sample(const SearchStepArgs& args, int64_t sample) { return sample >= 0 && sample < args.book_size; }

// Which rules take the gradient by `inward`: the paper's ascent takes it as it is.
AMUN_HD bool takes_inward(Rule rule) { return rule == Rule::ddn || rule == Rule::deepfool; }

// The bounds that `inward` is to use, infinite where it is not to change anything.
template <typename A>
struct Bounds {
  A low, high;
};

template <typename T, typename A = Accumulate<T>>
AMUN_HD Bounds<A> inward_bounds(const SearchStepArgs& args) {
  constexpr A infinity = std::numeric_limits<A>::infinity();
  if (!takes_inward(args.rule)) return {-infinity, infinity};
  return {A(T(A(args.low))), A(T(A(args.high)))};  // rounded as the iterates on them are
}

template <typename A>
struct Verdict {
  Status status;  // pending: `move` is to be made
  bool keep;      // the iterate is the closest example so far
  StepMove<A> move;
};

// All that its fate hangs on but the sums: what the book knows of it, and what the model says of its iterate.
template <typename A>
struct Record {
  A eps, best;  // best: the distance of the closest example so far
  int32_t step, grad_evals;
  bool adversarial;
  A margin;
};

template <typename A>
AMUN_HD Record<A> read_record(const SearchStepArgs& args, int64_t slot, int64_t sample) {
  return {static_cast<const A*>(args.eps)[sample],
          static_cast<const A*>(args.distance)[sample],
          args.round_step[sample],
          args.grad_evals[sample],
          args.adversarial[slot],
          static_cast<const A*>(args.margin)[slot]};
}

template <typename A>
AMUN_HD void write_record(const SearchStepArgs& args, int64_t sample, const Record<A>& record) {
  static_cast<A*>(args.eps)[sample] = record.eps;
  static_cast<A*>(args.distance)[sample] = record.best;
  args.round_step[sample] = record.step;
  args.grad_evals[sample] = record.grad_evals;
}

// What becomes of a sample: is its iterate to be kept, has its search ended, or how does it go on.
template <typename A>
AMUN_HD Verdict<A> judge(const SearchStepArgs& args, Record<A>& record, const StepSums<A>& sums) {
  auto& [eps, best, step, grad_evals, adversarial, margin] = record;
  const A infinity = std::numeric_limits<A>::infinity(), distance = root(sums.dd);

  Verdict<A> verdict{Status::pending, false, {A(1), A(1), A(0)}};
  if (adversarial && distance < best) {
    best = distance;
    verdict.keep = true;
  }
  const auto ended = [&](Status without_example) {
    verdict.status = best < infinity ? Status::found : without_example;
    return verdict;
  };
  if (args.rule != Rule::pgd && step >= args.steps) return ended(Status::exhausted);  // that took no gradient
  ++grad_evals;
  if (adversarial && (args.rule == Rule::pgd || distance == A(0))) return ended(Status::exhausted);
  if (!is_finite(sums.gg)) return ended(Status::no_gradient);
  if (args.rule == Rule::given) {
    ++step;
    verdict.move = {A(0), A(0), A(1)};
    return verdict;
  }
  if (!(sums.gg > A(0)) || is_nan(margin)) return ended(Status::no_gradient);

  // However small the margin is, the label still wins: there must be a radius that can grow, and a step that moves.
  const A eps_max = A(args.eps_max), shortest = resolution(sums), overshoot = A(args.overshoot);
  if (eps == A(0)) {
    eps = A(args.start) * margin / root(sums.gg);
    eps = eps > shortest ? eps : shortest;
    eps = eps < eps_max ? eps : eps_max;
  }
  if (args.rule == Rule::pgd) {
    if (!next_step(eps, step, args.steps, A(args.eps_growth), eps_max)) return ended(Status::exhausted);
    verdict.move = pgd_move(sums, A(args.step_fraction) * eps, eps);
  } else if (args.rule == Rule::ddn) {
    const A length = eps * scheduled(A(args.step_fraction), A(args.last_step_fraction), step, args.steps);
    const A change = scheduled(A(args.eps_growth - 1), A(args.last_eps_growth - 1), step, args.steps);
    if (step) {
      eps = ddn_radius(sums, length, eps, best, margin, adversarial, change, overshoot);
      eps = eps < eps_max ? eps : eps_max;
    }
    ++step;
    verdict.move = ddn_move(sums, length, eps);
  } else {
    ++step;
    verdict.move = adversarial ? deepfool_move(sums, margin, A(args.pull_back), overshoot, -infinity)
                               : deepfool_move(sums, margin, A(1), overshoot, shortest);
  }
  return verdict;
}

}  // namespace amun
