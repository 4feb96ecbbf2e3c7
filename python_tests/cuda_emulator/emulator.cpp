// The CUDA kernels on CPU threads, registered for the dispatch key PrivateUse1 beside those of CPU and CUDA, with the
// same checks before them. CPU tensors reach them by a redispatch to that key.

#include "cuda_emulator.h"
// Then the kernels.
#include "cuda/attack_loss.cuh"
#include "cuda/masked_sgd.cuh"
#include "cuda/search_step.cuh"
#include "cuda/sm_taylor_softmax.cuh"
#include "host/attack_loss.h"
#include "host/masked_sgd.h"
#include "host/search_step.h"
#include "host/sm_taylor_softmax.h"

namespace amun {
namespace {

int64_t block_size = 0;  // threads of a block; 0: as many as a launch on a GPU has

unsigned threads_or(unsigned launched) { return block_size ? static_cast<unsigned>(block_size) : launched; }

// So many lanes for each row.
template <typename Kernel>
void launch_rows(int64_t rows, unsigned lanes, unsigned threads, Kernel kernel) {
  const unsigned rows_per_block = threads / lanes;
  cuda_emulator::launch((rows + rows_per_block - 1) / rows_per_block, {lanes, rows_per_block}, kernel);
}

void launch_attack_loss(const Tensor&, ScalarType dtype, const AttackLossArgs& args) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_attack_loss<T>(args, [&](auto loss, auto whole) {
      launch_rows(args.rows, attack_loss_lanes<T>(args.classes), threads_or(attack_loss_threads),
                  [&] { attack_loss_kernel<loss, whole, T>(args); });
    });
  });
}

void launch_search_step(const Tensor&, ScalarType dtype, const SearchStepArgs& args) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda_emulator::launch(args.batch_size, threads_or(search_step_threads<T>(args.row_length)), [&] {
      are_whole<T>(args) ? search_step_kernel<T, true>(args) : search_step_kernel<T, false>(args);
    });
  });
}

void launch_masked_sgd(const Tensor&, ScalarType dtype, const MaskedSgdGroup& group, const SgdRule<double>& rule) {
  MaskedSgdTable table{rule, static_cast<int64_t>(group.tensors.size()), group.tensors.data(), {}};
  if (table.count <= MaskedSgdTable::inline_capacity) {
    std::copy(group.tensors.begin(), group.tensors.end(), table.inline_list);
    table.device_list = nullptr;
  }
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    cuda_emulator::launch(group.blocks, threads_or(masked_sgd_threads), [&] {
      group.wide ? masked_sgd_kernel<T, Accumulate<T>>(table) : masked_sgd_kernel<T, T>(table);
    });
  });
}

void launch_sm_taylor_softmax(const Tensor&, ScalarType dtype, const SmTaylorArgs& args) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_width<T>(args, [&](auto width) {
      dispatch_order(args.order, [&](auto terms) {
        launch_rows(args.rows, sm_taylor_lanes<width>(args.classes), threads_or(sm_taylor_threads),
                    [&] { sm_taylor_kernel<terms, width, T>(args); });
      });
    });
  });
}

void set_block_size(int64_t threads) { block_size = threads; }

// Kernels that test the emulator: in each, the threads from `leave` on have returned when the others meet.

std::vector<int64_t> block_after_exit(int64_t threads, int64_t leave) {
  std::vector<int64_t> seen(leave);
  int64_t counter = 0;
  cuda_emulator::launch(1, static_cast<unsigned>(threads), [&] {
    if (threadIdx.x >= leave) return;
    atomicAdd(&counter, int64_t(1));
    __syncthreads();
    seen[threadIdx.x] = counter;
  });
  return seen;
}

void shuffle_after_exit(int64_t threads, int64_t leave) {
  cuda_emulator::launch(1, static_cast<unsigned>(threads), [&] {
    if (threadIdx.x < leave) lane_sum(1.0f);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, PrivateUse1, m) {
  m.impl("attack_loss", TORCH_BOX(&attack_loss<launch_attack_loss>));
  m.impl("search_step_", TORCH_BOX(&search_step<launch_search_step>));
  m.impl("masked_sgd_", TORCH_BOX(&masked_sgd<launch_masked_sgd>));
  m.impl("sm_taylor_softmax", TORCH_BOX(&sm_taylor_softmax<launch_sm_taylor_softmax>));
}

STABLE_TORCH_LIBRARY(amun_emulator, m) {
  m.def("set_block_size(int threads) -> ()");
  m.def("block_after_exit(int threads, int leave) -> int[]");
  m.def("shuffle_after_exit(int threads, int leave) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(amun_emulator, CompositeExplicitAutograd, m) {
  m.impl("set_block_size", TORCH_BOX(&set_block_size));
  m.impl("block_after_exit", TORCH_BOX(&block_after_exit));
  m.impl("shuffle_after_exit", TORCH_BOX(&shuffle_after_exit));
}

}  // namespace amun
