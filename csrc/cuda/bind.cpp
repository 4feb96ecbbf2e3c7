// The dispatcher's side of the CUDA ops, compiled by g++: checks, device guard, current stream, launch, launch check.

#include <torch/csrc/stable/accelerator.h>

#include "../checks.h"
#include "launch.h"

// In libtorch_cuda.so, which a CPU build of torch has not: weak, so that one binary links, loads and registers there
// too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace amun {
namespace {

torch::stable::accelerator::DeviceGuard device_of(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "CUDA tensors need a CUDA build of torch, this is a CPU build");
  return torch::stable::accelerator::DeviceGuard(tensor.get_device_index());
}

CUstream_st* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<CUstream_st*>(stream);
}

void check_launch(const char* op, int error) { STD_TORCH_CHECK(error == 0, op, ": ", cuda_error_text(error)); }

AttackLossOutputs attack_loss_cuda(const Tensor& logits_, const Tensor& labels_, const std::string& loss, double gap) {
  const auto guard = device_of(logits_);
  const Tensor logits = torch::stable::contiguous(logits_), labels = torch::stable::contiguous(labels_);
  AttackLossArgs args = check_attack_loss(logits, labels, loss, gap);
  AttackLossOutputs outputs = allocate(args, logits);
  check_launch("attack_loss", launch_attack_loss(logits.scalar_type(), args, current_stream(logits)));
  return outputs;
}

void search_step_cuda(Tensor x, Tensor slots, Tensor slot_labels, const Tensor& grad_, const Tensor& adversarial,
                      const Tensor& predicted, const Tensor& margin, const Tensor& inputs, const Tensor& labels,
                      Tensor images, Tensor found_labels, Tensor eps, Tensor distance, Tensor round_step,
                      Tensor grad_evals, Tensor status, const Tensor& queue, Tensor cursor, const std::string& rule,
                      int64_t steps, double step_fraction, double last_step_fraction, double eps_growth,
                      double last_eps_growth, double eps_max, double start, double overshoot, double pull_back,
                      double low, double high) {
  const auto guard = device_of(x);
  const Tensor grad = torch::stable::contiguous(grad_);
  const SearchStepArgs args = check_search_step(
      x, slots, slot_labels, grad, adversarial, predicted, margin, inputs, labels, images, found_labels, eps, distance,
      round_step, grad_evals, status, queue, cursor, rule, steps, step_fraction, last_step_fraction, eps_growth,
      last_eps_growth, eps_max, start, overshoot, pull_back, low, high);
  check_launch("search_step_", launch_search_step(x.scalar_type(), args, current_stream(x)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CUDA, m) {
  m.impl("attack_loss", TORCH_BOX(&attack_loss_cuda));
  m.impl("search_step_", TORCH_BOX(&search_step_cuda));
}

}  // namespace amun
