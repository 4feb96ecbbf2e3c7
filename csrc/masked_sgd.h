// The arguments of masked_sgd_, and the update of one element. Shared by both backends; no torch.
#pragma once

#include "amun_math.h"

namespace amun {

// The elements of a block. A list is cut into blocks, so that one large tensor and many small ones use every thread.
constexpr int64_t sgd_block = 4096;

AMUN_HD int64_t blocks_of(int64_t length) { return (length + sgd_block - 1) / sgd_block; }

// A parameter with elements, and its gradient, momentum and mask. T is its dtype, M that of its momentum.
struct MaskedSgdTensor {
  void* param;          // T [length]
  const void* grad;     // T [length]
  void* momentum;       // M [length]; null: none
  const uint8_t* mask;  // [length]; null: every element is updated
  int64_t length;
  int64_t first_block;  // the number of its first block among those of the list
};

// The arguments of a launch on a GPU, which has 4 KB for them.
struct MaskedSgdTable {
  static constexpr int64_t inline_capacity = 80;
  SgdRule<double> rule;
  int64_t count;
  const MaskedSgdTensor* device_list;  // in device memory, where there are more than inline_capacity; else null
  MaskedSgdTensor inline_list[inline_capacity];
};
static_assert(sizeof(MaskedSgdTable) <= 4096);

// The tensor of a block: the last one whose first block is not after it.
AMUN_HD const MaskedSgdTensor& tensor_of(const MaskedSgdTensor* tensors, int64_t count, int64_t block) {
  int64_t low = 0;
  for (int64_t high = count; high - low > 1;) {
    const int64_t middle = low + (high - low) / 2;
    (tensors[middle].first_block <= block ? low : high) = middle;
  }
  return tensors[low];
}

// Selected instead of multiplied, because 0 times NaN is NaN; as T and M, because a conversion changes the bits of a
// NaN.
template <typename T, typename M>
AMUN_HD void update(T& param, M& momentum, T grad, bool chosen, const SgdRule<Accumulate<T>>& rule) {
  using A = Accumulate<T>;
  const M before = rule.first ? M(0) : momentum;
  const SgdStep<A> next = sgd_step(A(param), A(before), chosen ? A(grad) : A(0), rule);
  const bool moves = chosen | rule.gradient_only;
  param = moves ? T(next.param) : param;
  momentum = moves ? M(next.momentum) : before;
}

}  // namespace amun
