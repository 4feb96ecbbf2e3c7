// The arguments of search_step_, and the decision about one sample. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// How the next iterate follows from the sums and the margin. pgd ends at its first adversarial point, the others make
// `steps` steps and keep the closest one. With `external` the caller passes the next iterate in place of grad.
enum class Rule : int32_t { pgd, ddn, deepfool, external };

// The numbers of a rule; each rule uses some of them (see search_step_ in amun_ext/ops.py).
struct StepParams {
  double eps_max, step_fraction, last_step_fraction, eps_growth, last_eps_growth, start, overshoot, pull_back;
};

// A row per slot of the batch [B], and a row per sample [N]; slot b works on sample sample_index[b]. T is the dtype of
// the images, A = Accumulate<T> that of eps and distance.
struct SearchStepArgs {
  int64_t batch_size;   // B
  int64_t num_samples;  // N
  int64_t row_length;   // D, the elements of one image
  int64_t queue_length;
  // batch
  void* x;                // T [B, D]  the iterates
  int64_t* sample_index;  // [B]       the sample in each slot, -1 when idle
  int64_t* slot_labels;   // [B]       its true label
  // feedback
  const void* grad;          // T [B, D]
  const bool* adversarial;   // [B]
  const int64_t* predicted;  // [B]
  const void* margin;        // A [B]  in logits, to the boundary
  // samples
  const void* inputs;     // T [N, D]  the originals
  const int64_t* labels;  // [N]
  // state
  void* images;             // T [N, D]  the start of each search, then the closest example so far
  int64_t* found_labels;    // [N]
  void* eps;                // A [N]     0: to be estimated from the first gradient
  void* distance;           // A [N]     of the closest example so far, infinite without one
  int32_t* step_count;      // [N]       steps so far, by pgd at this radius
  int32_t* grad_evals;      // [N]
  int8_t* status;           // [N]       a Status
  const int64_t* queue;     // [Q]  the samples to search, in order
  int64_t* queue_position;  // [1]  how many of them have been taken
  Rule rule;
  int32_t steps;
  StepParams params;
  double low, high;
};

// The order is public: amun_ext.search names these numbers.
enum class Status : int8_t { pending = 0, found = 1, exhausted = 2, no_gradient = 3 };

// A slot or queue entry out of range counts as no sample.
AMUN_HD bool is_sample(const SearchStepArgs& args, int64_t sample) { return sample >= 0 && sample < args.num_samples; }

// Whether a rule uses the gradient by `inward`; the paper's ascent uses the whole gradient.
AMUN_HD bool uses_inward(Rule rule) { return rule == Rule::ddn || rule == Rule::deepfool; }

// The bounds of `inward`, infinite for rules that do not use it.
template <typename A>
struct Bounds {
  A low, high;
};

template <typename T, typename A = Accumulate<T>>
AMUN_HD Bounds<A> inward_bounds(const SearchStepArgs& args) {
  constexpr A infinity = std::numeric_limits<A>::infinity();
  if (!uses_inward(args.rule)) return {-infinity, infinity};
  return {A(T(A(args.low))), A(T(A(args.high)))};  // rounded as the iterates on them are
}

template <typename A>
struct StepDecision {
  Status status;  // pending: `update` is to be made
  bool keep;      // the iterate is the closest example so far
  StepUpdate<A> update;
};

// Decide whether the iterate of a slot is kept and whether the search of its sample has ended, and compute the next
// update. Writes all of the sample's row but its image.
template <typename A>
AMUN_HD StepDecision<A> decide_step(const SearchStepArgs& args, int64_t slot, int64_t sample, const StepSums<A>& sums) {
  A &eps = static_cast<A*>(args.eps)[sample], &best = static_cast<A*>(args.distance)[sample];
  int32_t& step = args.step_count[sample];
  const bool adversarial = args.adversarial[slot];
  const A margin = static_cast<const A*>(args.margin)[slot];
  const StepParams& params = args.params;
  const A infinity = std::numeric_limits<A>::infinity(), distance = root(sums.dd);

  StepDecision<A> decision{Status::pending, false, {A(1), A(1), A(0)}};
  if (adversarial && distance < best) {
    best = distance;
    decision.keep = true;
    args.found_labels[sample] = args.predicted[slot];
  }
  const auto ended = [&](Status without_example) {
    decision.status = best < infinity ? Status::found : without_example;
    args.status[sample] = static_cast<int8_t>(decision.status);
    return decision;
  };
  if (args.rule != Rule::pgd && step >= args.steps) return ended(Status::exhausted);  // that took no gradient
  ++args.grad_evals[sample];
  if (adversarial && (args.rule == Rule::pgd || distance == A(0))) return ended(Status::exhausted);
  if (!is_finite(sums.gg)) return ended(Status::no_gradient);
  if (args.rule == Rule::external) {
    ++step;
    decision.update = {A(0), A(0), A(1)};
    return decision;
  }
  if (!(sums.gg > A(0)) || is_nan(margin)) return ended(Status::no_gradient);

  // for any margin, however small, the radius must be able to grow and the step to change x
  const A eps_max = A(params.eps_max), shortest = shortest_step(sums), overshoot = A(params.overshoot);
  if (eps == A(0)) {
    eps = A(params.start) * margin / root(sums.gg);
    eps = eps > shortest ? eps : shortest;
    eps = eps < eps_max ? eps : eps_max;
  }
  if (args.rule == Rule::pgd) {
    if (!next_step(eps, step, args.steps, A(params.eps_growth), eps_max)) return ended(Status::exhausted);
    decision.update = pgd_update(sums, A(params.step_fraction) * eps, eps);
  } else if (args.rule == Rule::ddn) {
    const A length = eps * scheduled(A(params.step_fraction), A(params.last_step_fraction), step, args.steps);
    const A change = scheduled(A(params.eps_growth - 1), A(params.last_eps_growth - 1), step, args.steps);
    if (step) {
      eps = ddn_radius(sums, length, eps, best, margin, adversarial, change, overshoot);
      eps = eps < eps_max ? eps : eps_max;
    }
    ++step;
    decision.update = ddn_update(sums, length, eps);
  } else {
    ++step;
    decision.update = adversarial ? deepfool_update(sums, margin, A(params.pull_back), overshoot, -infinity)
                                  : deepfool_update(sums, margin, A(1), overshoot, shortest);
  }
  return decision;
}

}  // namespace amun
