// The arguments of attack_loss, and the result of a row. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// T is the dtype of the logits, A = Accumulate<T> that of the margin.
struct AttackLossArgs {
  int64_t rows, classes;  // B, K
  Loss loss;
  double min_margin;      // by how much the rival must lead; 0: the prediction decides
  const void* logits;     // T [B, K]
  const int64_t* labels;  // [B]
  bool* adversarial;      // [B]
  int64_t* predicted;     // [B]     -1 where a logit is NaN
  void* margin;           // A [B]   label's logit minus the largest other, plus min_margin
  void* grad_logits;      // T [B, K]
};

// The rounding of the larger of two logits; for two zeros, of one.
template <typename A>
AMUN_HD A logit_rounding(A own, A rival) {
  own = own < A(0) ? -own : own;
  rival = rival < A(0) ? -rival : rival;
  const A larger = own > rival ? own : rival;
  return std::numeric_limits<A>::epsilon() * (larger > A(0) ? larger : A(1));
}

template <typename A>
AMUN_HD void write_result(const AttackLossArgs& args, int64_t row, A own, int64_t label, const Rival<A>& rival) {
  const bool unknown = is_nan(own) || is_nan(rival.logit);
  const bool ahead = !unknown && is_ahead(rival, own, label);
  const A margin = own - rival.logit + A(args.min_margin);
  const bool adversarial = ahead && (args.min_margin == 0 || margin <= A(0));
  // at a tie the label wins, so the margin is at least a rounding of the logits
  const A least = adversarial ? margin : logit_rounding(own, rival.logit);
  args.adversarial[row] = adversarial;
  args.predicted[row] = unknown ? -1 : ahead ? rival.index : label;
  static_cast<A*>(args.margin)[row] = margin < least ? least : margin;
}

}  // namespace amun
