// masked_sgd_ up to the launch, which is the backend's: launch(params[0], dtype, group, rule), group by group.
#pragma once

#include "../masked_sgd.h"

#include "checks.h"

namespace amun {

// The parameters of one kernel: of one dtype, with momentum in the same or in a wider one.
struct MaskedSgdGroup {
  ScalarType dtype;
  bool wide;
  int64_t blocks = 0;
  std::vector<MaskedSgdTensor> tensors = {};
};

inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous() || tensor.numel() == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t i = 0; i < tensor.dim(); ++i)
    if (tensor.size(i) != 1) dims.emplace_back(tensor.stride(i), tensor.size(i));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// A gradient, momentum buffer or mask must have the memory layout of its parameter.
inline void check_beside(const Entry& name, const Tensor& tensor, ScalarType dtype, const Tensor& param) {
  const auto sizes = param.sizes(), own_sizes = tensor.sizes();
  const bool shape = std::equal(sizes.begin(), sizes.end(), own_sizes.begin(), own_sizes.end());
  STD_TORCH_CHECK(shape, name, " must have the shape of its parameter, ", text(sizes), ", got ", text(own_sizes));
  const auto strides = param.strides(), own_strides = tensor.strides();
  bool same = true;
  for (size_t i = 0; i < sizes.size(); ++i) same = same && (sizes[i] == 1 || strides[i] == own_strides[i]);
  same = same || param.numel() == 0;
  STD_TORCH_CHECK(same, name, " must have the strides of its parameter, ", text(strides), ", got ", text(own_strides));
  check_dtype(name, tensor, dtype);
  check_device(name, tensor, param.device());
}

template <auto launch>
void masked_sgd(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
                std::vector<Tensor> masks, double lr, double momentum, double dampening, double weight_decay,
                bool nesterov, bool maximize, bool first, bool gradient_only) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const struct {
    const char* name;
    double value, least;
  } numbers[] = {
      {"lr", lr, 0}, {"momentum", momentum, 0}, {"dampening", dampening, -infinity}, {"weight_decay", weight_decay, 0}};
  for (const auto& [name, value, least] : numbers)
    STD_TORCH_CHECK(value >= least && is_finite_float(value), name, " must be finite",
                    least == 0 ? " and not negative" : "", ", got ", value);
  STD_TORCH_CHECK(!nesterov || (momentum > 0 && dampening == 0),
                  "nesterov must come with momentum and without dampening, got ", momentum, " and ", dampening);
  const size_t count = params.size(), remembered = momentum == 0 ? 0 : count;
  STD_TORCH_CHECK(grads.size() == count, "grads must be as many as params, ", count, ", got ", grads.size());
  STD_TORCH_CHECK(momentum_buffers.size() == remembered, "momentum_buffers must be ", remembered, " with momentum ",
                  momentum, ", got ", momentum_buffers.size());
  STD_TORCH_CHECK(masks.empty() || masks.size() == count, "masks must be none or as many as params, ", count, ", got ",
                  masks.size());

  std::vector<MaskedSgdGroup> groups;
  std::vector<Span> spans;
  for (size_t i = 0; i < count; ++i) {
    const Entry name{"params", i};
    const Tensor& param = params[i];
    const ScalarType dtype = param.scalar_type();
    check_float(name, param);
    STD_TORCH_CHECK(is_dense(param), name, " must be dense and without overlap, got strides ", text(param.strides()),
                    " for ", text(param.sizes()));
    check_device(name, param, params[0].device());
    check_beside({"grads", i}, grads[i], dtype, param);
    MaskedSgdTensor tensor{param.mutable_data_ptr(), grads[i].const_data_ptr(), nullptr, nullptr, param.numel(), 0};
    const bool wide = remembered && momentum_buffers[i].scalar_type() != dtype;
    if (remembered) {
      check_beside({"momentum_buffers", i}, momentum_buffers[i], wide ? accumulate_dtype(dtype) : dtype, param);
      tensor.momentum = momentum_buffers[i].mutable_data_ptr();
    }
    if (!masks.empty()) {
      check_beside({"masks", i}, masks[i], ScalarType::Bool, param);
      tensor.mask = static_cast<const uint8_t*>(masks[i].const_data_ptr());
    }
    if (!tensor.length) continue;
    spans.push_back(span("params", param, true));
    spans.push_back(span("grads", grads[i], false));
    if (remembered) spans.push_back(span("momentum_buffers", momentum_buffers[i], true));
    if (!masks.empty()) spans.push_back(span("masks", masks[i], false));
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& other) { return other.dtype == dtype && other.wide == wide; });
    if (group == groups.end()) group = groups.insert(group, {dtype, wide});
    tensor.first_block = group->blocks;
    group->blocks += blocks_of(tensor.length);
    group->tensors.push_back(tensor);
  }
  must_not_alias(std::move(spans));
  const double gradient_weight = first || momentum == 0 ? 1 : 1 - dampening;
  const SgdRule<double> rule{lr, momentum, weight_decay, gradient_weight, nesterov, maximize, first, gradient_only};
  for (const MaskedSgdGroup& group : groups) launch(params[0], group.dtype, group, rule);
}

}  // namespace amun
