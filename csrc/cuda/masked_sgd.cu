#include "masked_sgd.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_masked_sgd(ScalarType dtype, bool wide, const MaskedSgdTable& table, int64_t blocks, CUstream_st* stream) {
  const unsigned grid = static_cast<unsigned>(blocks);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (wide)
      masked_sgd_kernel<T, Accumulate<T>><<<grid, masked_sgd_threads, 0, stream>>>(table);
    else
      masked_sgd_kernel<T, T><<<grid, masked_sgd_threads, 0, stream>>>(table);
  });
  return cudaGetLastError();
}

}  // namespace amun
