// What attack_loss reads and writes. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// T is the dtype of the logits, A = Accumulate<T> that of the margin.
struct AttackLossArgs {
  int64_t rows, classes;  // B, K
  Loss loss;
  double gap;             // by how much the rival must be ahead; 0 = the prediction decides
  const void* logits;     // T [B, K]
  const int64_t* labels;  // [B]
  bool* adversarial;      // [B]
  int64_t* predicted;     // [B]     -1 where a logit is NaN
  void* margin;           // A [B]   label's logit minus the strongest other, plus the gap
  void* grad_logits;      // T [B, K]
};

template <typename A>
AMUN_HD void write_verdict(const AttackLossArgs& args, int64_t row, A own, int64_t label, const Rival<A>& rival) {
  const bool unknown = is_nan(own) || is_nan(rival.logit);
  const bool ahead = !unknown && is_ahead(rival, own, label);
  const A margin = own - rival.logit + A(args.gap);
  args.adversarial[row] = ahead && (args.gap == 0 || margin <= A(0));
  args.predicted[row] = unknown ? -1 : ahead ? rival.index : label;
  static_cast<A*>(args.margin)[row] = margin;
}

}  // namespace amun
