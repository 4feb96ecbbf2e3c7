#include "attack_loss.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_attack_loss(ScalarType dtype, const AttackLossArgs& args, CUstream_st* stream) {
  if (args.rows == 0) return cudaSuccess;
  constexpr int64_t rows_per_block = attack_loss_threads / warp_size;
  const unsigned blocks = static_cast<unsigned>((args.rows + rows_per_block - 1) / rows_per_block);
  dispatch(dtype,
           [&](auto zero) { attack_loss_kernel<decltype(zero)><<<blocks, attack_loss_threads, 0, stream>>>(args); });
  return cudaGetLastError();
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace amun
