#include "attack_loss.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_attack_loss(ScalarType dtype, const AttackLossArgs& args, CUstream_st* stream) {
  if (args.rows == 0) return cudaSuccess;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const unsigned lanes = attack_loss_lanes<T>(args.classes), rows = attack_loss_threads / lanes;
    const unsigned blocks = static_cast<unsigned>((args.rows + rows - 1) / rows);
    dispatch_attack_loss<T>(args, [&](auto loss, auto whole) {
      attack_loss_kernel<loss, whole, T><<<blocks, dim3(lanes, rows), 0, stream>>>(args);
    });
  });
  return cudaGetLastError();
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace amun
