#include "../host/masked_sgd.h"

#include "clones.h"

namespace amun {
namespace {

template <bool masked, bool remembers, typename T, typename M>
AMUN_CLONES void update_run(T* __restrict param, const T* __restrict grad, M* __restrict momentum,
                            const uint8_t* __restrict mask, int64_t length, SgdRule<Accumulate<T>> rule) {
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) {
    M none(0);
    update(param[i], remembers ? momentum[i] : none, grad[i], masked ? mask[i] != 0 : true, rule);
  }
}

// The blocks [begin, end) of the list, tensor by tensor.
template <typename T, typename M>
void update_blocks(const MaskedSgdGroup& group, int64_t begin, int64_t end, const SgdRule<Accumulate<T>>& rule) {
  const int64_t count = group.tensors.size();
  while (begin < end) {
    const MaskedSgdTensor& tensor = tensor_of(group.tensors.data(), count, begin);
    const int64_t next = std::min(end, tensor.first_block + blocks_of(tensor.length));
    const int64_t from = (begin - tensor.first_block) * sgd_block;
    const int64_t to = std::min((next - tensor.first_block) * sgd_block, tensor.length);
    T* const param = static_cast<T*>(tensor.param) + from;
    const T* const grad = static_cast<const T*>(tensor.grad) + from;
    M* const momentum = tensor.momentum ? static_cast<M*>(tensor.momentum) + from : nullptr;
    const uint8_t* const mask = tensor.mask ? tensor.mask + from : nullptr;
    const auto masked = momentum ? update_run<true, true, T, M> : update_run<true, false, T, M>;
    const auto whole = momentum ? update_run<false, true, T, M> : update_run<false, false, T, M>;
    (mask ? masked : whole)(param, grad, momentum, mask, to - from, rule);
    begin = next;
  }
}

template <typename T, typename M>
void update_group(const MaskedSgdGroup& group, const SgdRule<double>& rule) {
  constexpr int64_t grain = 8;
  torch::stable::parallel_for(0, group.blocks, grain, [&](int64_t begin, int64_t end) {
    update_blocks<T, M>(group, begin, end, rule.as<Accumulate<T>>());
  });
}

void masked_sgd_cpu(const Tensor&, ScalarType dtype, const MaskedSgdGroup& group, const SgdRule<double>& rule) {
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    group.wide ? update_group<T, Accumulate<T>>(group, rule) : update_group<T, T>(group, rule);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) { m.impl("masked_sgd_", TORCH_BOX(&masked_sgd<masked_sgd_cpu>)); }

}  // namespace amun
