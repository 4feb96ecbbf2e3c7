// The dispatcher's side of the CUDA ops, compiled by g++: checks, device guard, current stream, launch, launch check.

#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

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

void masked_sgd_cuda(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
                     std::vector<Tensor> masks, double lr, double momentum, double dampening, double weight_decay,
                     bool nesterov, bool maximize, bool first, bool gradient_only) {
  const auto [rule, groups] = check_masked_sgd(params, grads, momentum_buffers, masks, lr, momentum, dampening,
                                               weight_decay, nesterov, maximize, first, gradient_only);
  if (groups.empty()) return;
  const auto guard = device_of(params[0]);
  for (const MaskedSgdGroup& group : groups) {
    MaskedSgdTable table{rule, static_cast<int64_t>(group.tensors.size()), nullptr, {}};
    Tensor far;  // may go before the kernel has run: its memory is handed on in the order of the stream
    if (table.count <= MaskedSgdTable::room) {
      std::copy(group.tensors.begin(), group.tensors.end(), table.near);
    } else {
      const int64_t bytes = table.count * static_cast<int64_t>(sizeof(MaskedSgdTensor));
      const Tensor host =
          torch::stable::from_blob(const_cast<MaskedSgdTensor*>(group.tensors.data()), {bytes}, {1},
                                   torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte);
      far = torch::stable::new_empty(params[0], {bytes}, ScalarType::Byte);
      torch::stable::copy_(far, host, true);  // from pageable memory: it is read before the call returns
      table.far = static_cast<const MaskedSgdTensor*>(far.const_data_ptr());
    }
    check_launch("masked_sgd_",
                 launch_masked_sgd(group.dtype, group.wide, table, group.blocks, current_stream(params[0])));
  }
}

Tensor sm_taylor_softmax_cuda(const Tensor& logits_, const Tensor& labels_, int64_t order, double margin,
                              double temperature, double floor) {
  const auto guard = device_of(logits_);
  const Tensor logits = torch::stable::contiguous(logits_), labels = torch::stable::contiguous(labels_);
  SmTaylorArgs args = check_sm_taylor_softmax(logits, labels, order, margin, temperature, floor);
  const Tensor signal = allocate(args, logits);
  check_launch("sm_taylor_softmax",
               launch_sm_taylor_softmax(logits.scalar_type(), order, args, current_stream(logits)));
  return signal;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CUDA, m) {
  m.impl("attack_loss", TORCH_BOX(&attack_loss_cuda));
  m.impl("search_step_", TORCH_BOX(&search_step_cuda));
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd_cuda));
  m.impl("sm_taylor_softmax", TORCH_BOX(&sm_taylor_softmax_cuda));
}

}  // namespace amun
