#include "search_step.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_search_step(ScalarType dtype, const SearchStepArgs& args, CUstream_st* stream) {
  if (args.batch_size == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(args.batch_size);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const unsigned threads = search_step_threads<T>(args.row_length);
    const auto kernel = are_whole<T>(args) ? search_step_kernel<T, true> : search_step_kernel<T, false>;
    kernel<<<blocks, threads, 0, stream>>>(args);
  });
  return cudaGetLastError();
}

}  // namespace amun
