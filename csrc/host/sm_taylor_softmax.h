// sm_taylor_softmax up to the launch, which is the backend's: launch(logits, dtype, args).
#pragma once

#include "../sm_taylor_softmax.h"

#include "checks.h"

namespace amun {

template <auto launch>
Tensor sm_taylor_softmax(const Tensor& logits_, const Tensor& labels_, int64_t order, double margin, double temperature,
                         double floor) {
  const Tensor logits = torch::stable::contiguous(logits_), labels = torch::stable::contiguous(labels_);
  STD_TORCH_CHECK(logits.dim() >= 2, "logits must have shape [..., N, C], got ", text(logits.sizes()));
  check_float("logits", logits);
  const int64_t samples = logits.size(-2), classes = logits.size(-1);
  STD_TORCH_CHECK(classes >= 2 && classes <= std::numeric_limits<int32_t>::max(),
                  "logits must have at least two classes and less than 2^31, got ", text(logits.sizes()));
  STD_TORCH_CHECK(order >= least_taylor_order && order <= most_taylor_order, "order must be in [", least_taylor_order,
                  ", ", most_taylor_order, "], got ", order);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  STD_TORCH_CHECK(is_finite_float(margin), "margin must be finite, got ", margin);
  STD_TORCH_CHECK(temperature > 0 && is_finite_float(temperature), "temperature must be positive and finite, got ",
                  temperature);
  STD_TORCH_CHECK((floor > 0 && is_finite_float(floor)) || floor == -infinity,
                  "floor must be positive and finite, or -inf for none, got ", floor);
  check_column("labels", labels, samples, ScalarType::Long, logits.device());
  const auto sizes = logits.sizes();
  const Tensor signal =
      torch::stable::new_empty(logits, {sizes.data(), sizes.size() - 1}, accumulate_dtype(logits.scalar_type()));
  launch(logits, logits.scalar_type(),
         SmTaylorArgs{signal.numel(),
                      samples,
                      classes,
                      order,
                      {1 / temperature, margin, floor},
                      logits.const_data_ptr(),
                      static_cast<const int64_t*>(labels.const_data_ptr()),
                      signal.mutable_data_ptr()});
  return signal;
}

}  // namespace amun
