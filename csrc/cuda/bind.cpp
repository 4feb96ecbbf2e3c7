// Registers the CUDA ops, compiled by g++: device guard, current stream, launch, launch check.

#include <torch/csrc/stable/accelerator.h>

#include "../host/attack_loss.h"
#include "../host/masked_sgd.h"
#include "../host/search_step.h"
#include "../host/sm_taylor_softmax.h"
#include "launch.h"

// In libtorch_cuda.so, which a CPU build of torch lacks: weak, so that the same binary loads there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace amun {
namespace {

// A launch on the device of `like` and its current stream.
template <auto launch>
constexpr auto on_stream = [](const Tensor& like, const auto&... args) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "CUDA tensors need a CUDA build of torch, this is a CPU build");
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  const int error = launch(args..., static_cast<CUstream_st*>(stream));
  STD_TORCH_CHECK(error == 0, "CUDA: ", cuda_error_text(error));
};

void masked_sgd_cuda(const Tensor& like, ScalarType dtype, const MaskedSgdGroup& group, const SgdRule<double>& rule) {
  MaskedSgdTable table{rule, static_cast<int64_t>(group.tensors.size()), nullptr, {}};
  Tensor list;  // may be freed before the kernel has run: its memory is reused in the order of the stream
  if (table.count <= MaskedSgdTable::inline_capacity) {
    std::copy(group.tensors.begin(), group.tensors.end(), table.inline_list);
  } else {
    const int64_t bytes = table.count * static_cast<int64_t>(sizeof(MaskedSgdTensor));
    const Tensor host =
        torch::stable::from_blob(const_cast<MaskedSgdTensor*>(group.tensors.data()), {bytes}, {1},
                                 torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte);
    list = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
    torch::stable::copy_(list, host, true);  // from pageable memory, which is read before the call returns
    table.device_list = static_cast<const MaskedSgdTensor*>(list.const_data_ptr());
  }
  on_stream<launch_masked_sgd>(like, dtype, group.wide, table, group.blocks);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CUDA, m) {
  m.impl("attack_loss", TORCH_BOX(&attack_loss<on_stream<launch_attack_loss>>));
  m.impl("search_step_", TORCH_BOX(&search_step<on_stream<launch_search_step>>));
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd<masked_sgd_cuda>));
  m.impl("sm_taylor_softmax", TORCH_BOX(&sm_taylor_softmax<on_stream<launch_sm_taylor_softmax>>));
}

}  // namespace amun
