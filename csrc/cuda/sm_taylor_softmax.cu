#include "sm_taylor_softmax.cuh"

#include <cuda_runtime.h>

#include "launch.h"

namespace amun {

int launch_sm_taylor_softmax(ScalarType dtype, const SmTaylorArgs& args, CUstream_st* stream) {
  if (args.rows == 0) return cudaSuccess;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    dispatch_width<T>(args, [&](auto width) {
      const unsigned lanes = sm_taylor_lanes<width>(args.classes), rows = sm_taylor_threads / lanes;
      const unsigned blocks = static_cast<unsigned>((args.rows + rows - 1) / rows);
      dispatch_order(args.order, [&](auto terms) {
        sm_taylor_kernel<terms, width, T><<<blocks, dim3(lanes, rows), 0, stream>>>(args);
      });
    });
  });
  return cudaGetLastError();
}

}  // namespace amun
