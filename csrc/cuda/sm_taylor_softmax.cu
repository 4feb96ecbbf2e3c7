#include "sm_taylor_softmax.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_sm_taylor_softmax(ScalarType dtype, int64_t order, const SmTaylorArgs& args, CUstream_st* stream) {
  if (args.rows == 0) return cudaSuccess;
  const int64_t rows_per_block = sm_taylor_threads / sm_taylor_lanes(args.classes);
  const unsigned blocks = static_cast<unsigned>((args.rows + rows_per_block - 1) / rows_per_block);
  dispatch(dtype, [&](auto zero) {
    dispatch_order(order, [&](auto terms) {
      sm_taylor_kernel<decltype(terms)::value, decltype(zero)><<<blocks, sm_taylor_threads, 0, stream>>>(args);
    });
  });
  return cudaGetLastError();
}

}  // namespace amun
