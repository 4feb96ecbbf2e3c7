// Between bind.cpp (torch, g++) and the .cu files (kernels, nvcc): raw pointers, a dtype and a stream.
#pragma once

#include "../attack_loss.h"
#include "../dispatch.h"
#include "../masked_sgd.h"
#include "../search_step.h"
#include "../sm_taylor_softmax.h"

struct CUstream_st;

namespace amun {

// Each returns a cudaError_t as int; 0 is success.
int launch_attack_loss(ScalarType dtype, const AttackLossArgs& args, CUstream_st* stream);
int launch_search_step(ScalarType dtype, const SearchStepArgs& args, CUstream_st* stream);
int launch_masked_sgd(ScalarType dtype, bool wide, const MaskedSgdTable& table, int64_t blocks, CUstream_st* stream);
int launch_sm_taylor_softmax(ScalarType dtype, const SmTaylorArgs& args, CUstream_st* stream);
const char* cuda_error_text(int error);

}  // namespace amun
