#include "search_step.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_search_step(ScalarType dtype, const SearchStepArgs& args, CUstream_st* stream) {
  if (args.pool_size == 0) return cudaSuccess;
  dispatch(dtype, [&](auto zero) {
    search_step_kernel<decltype(zero)><<<static_cast<unsigned>(args.pool_size), search_step_threads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace amun
