// What attack_loss reads and writes. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// T is the dtype of the logits, A = Accumulate<T> that of the margin.
struct AttackLossArgs {
  int64_t rows, classes;  // B, K
  Loss loss;
  const void* logits;     // T [B, K]
  const int64_t* labels;  // [B]
  bool* adversarial;      // [B]
  int64_t* predicted;     // [B]     -1 where a logit is NaN
  void* margin;           // A [B]   label's logit minus the strongest other
  void* grad_logits;      // T [B, K]
};

template <typename A>
AMUN_HD void write_verdict(const AttackLossArgs& args, int64_t row, A own, int64_t label, const Rival<A>& rival) {
  const bool unknown = is_nan(own) || is_nan(rival.logit);
  const bool adversarial = !unknown && is_adversarial(own, label, rival);
  args.adversarial[row] = adversarial;
  args.predicted[row] = unknown ? -1 : adversarial ? rival.index : label;
  static_cast<A*>(args.margin)[row] = own - rival.logit;
}

}  // namespace amun
