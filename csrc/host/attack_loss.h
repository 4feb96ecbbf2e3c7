// attack_loss up to the launch, which is the backend's: launch(logits, dtype, args).
#pragma once

#include "../attack_loss.h"

#include <tuple>

#include "checks.h"

namespace amun {

// Returns adversarial, predicted, margin and grad_logits.
template <auto launch>
std::tuple<Tensor, Tensor, Tensor, Tensor> attack_loss(const Tensor& logits_, const Tensor& labels_,
                                                       const std::string& loss, double min_margin) {
  const Tensor logits = torch::stable::contiguous(logits_), labels = torch::stable::contiguous(labels_);
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have shape [B, K], got ", text(logits.sizes()));
  check_float("logits", logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  STD_TORCH_CHECK(classes >= 2 && classes <= int64_t(1) << 30,
                  "logits must have at least two classes and at most 2^30, got ", text(logits.sizes()));
  STD_TORCH_CHECK(loss == "cross_entropy" || loss == "margin", "loss must be \"cross_entropy\" or \"margin\", got \"",
                  loss, "\"");
  STD_TORCH_CHECK(min_margin >= 0 && is_finite_float(min_margin), "min_margin must be finite and not negative, got ",
                  min_margin);
  check_column("labels", labels, rows, ScalarType::Long, logits.device());
  const auto row = [&](ScalarType type) { return torch::stable::new_empty(logits, {rows}, type); };
  const Tensor adversarial = row(ScalarType::Bool), predicted = row(ScalarType::Long),
               margin = row(accumulate_dtype(dtype)), grad_logits = torch::stable::new_empty(logits, {rows, classes});
  launch(logits, dtype,
         AttackLossArgs{rows, classes, loss == "margin" ? Loss::margin : Loss::cross_entropy, min_margin,
                        logits.const_data_ptr(), static_cast<const int64_t*>(labels.const_data_ptr()),
                        static_cast<bool*>(adversarial.mutable_data_ptr()),
                        static_cast<int64_t*>(predicted.mutable_data_ptr()), margin.mutable_data_ptr(),
                        grad_logits.mutable_data_ptr()});
  return {adversarial, predicted, margin, grad_logits};
}

}  // namespace amun
