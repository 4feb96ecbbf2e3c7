// What search_step_ works on, and how one sample's fate is decided. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

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
  // book
  const void* inputs;     // T [N, D]  the originals
  const int64_t* labels;  // [N]
  void* images;           // T [N, D]  where each search starts, then what it found
  int64_t* found_labels;  // [N]
  void* eps;              // A [N]
  void* distance;         // A [N]
  int32_t* round_step;    // [N]
  int32_t* grad_evals;    // [N]
  int8_t* status;         // [N]       a Status
  const int64_t* queue;   // [Q]       the samples to search, in order
  int64_t* cursor;        // [1]       how many of them have been handed out
  // rule
  double step_fraction, eps_growth, eps_max, low, high;
  int32_t steps;
};

// The order is public: amun_ext.search names these numbers.
enum class Status : int8_t { pending = 0, found = 1, exhausted = 2, no_gradient = 3 };

// A slot or queue entry that names no sample counts as none, so that no index leads outside the book.
AMUN_HD bool is_sample(const SearchStepArgs& args, int64_t sample) { return sample >= 0 && sample < args.book_size; }

// Books one gradient evaluation of `sample` and decides what becomes of it; `pending` means that `move` is to be made.
template <typename A>
AMUN_HD Status judge(const SearchStepArgs& args, int64_t sample, bool adversarial, const StepSums<A>& sums,
                     StepMove<A>& move) {
  A* const eps = static_cast<A*>(args.eps) + sample;
  ++args.grad_evals[sample];
  if (adversarial) {
    static_cast<A*>(args.distance)[sample] = root(sums.dd);
    return Status::found;
  }
  if (!(sums.gg > A(0)) || !is_finite(sums.gg)) return Status::no_gradient;
  if (!next_step(*eps, args.round_step[sample], args.steps, A(args.eps_growth), A(args.eps_max)))
    return Status::exhausted;
  move = pgd_move(sums, A(args.step_fraction) * *eps, *eps);
  return Status::pending;
}

}  // namespace amun
