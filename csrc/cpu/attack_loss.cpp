#include "../host/attack_loss.h"

#include "clones.h"

namespace amun {
namespace {

template <typename T>
AMUN_CLONES void attack_loss_rows(const AttackLossArgs& args, int64_t begin, int64_t end) {
  using A = Accumulate<T>;
  for (int64_t row = begin; row < end; ++row) {
    const T* const logits = static_cast<const T*>(args.logits) + row * args.classes;
    T* const grad = static_cast<T*>(args.grad_logits) + row * args.classes;
    const int64_t label = args.labels[row];
    if (label < 0 || label >= args.classes) {  // an unknown label gives the result of a NaN
      write_result<A>(args, row, std::numeric_limits<A>::quiet_NaN(), label, Rival<A>{});
      std::fill(grad, grad + args.classes, T(0));
      continue;
    }
    const A own = A(logits[label]);
    const int32_t classes = static_cast<int32_t>(args.classes);
    Rival<A> rival;
    for (int32_t j = 0; j < classes; ++j)
      if (j != label) rival = max_rival(rival, Rival<A>{A(logits[j]), j});
    write_result(args, row, own, label, rival);
    if (!has_direction(own, rival)) {
      std::fill(grad, grad + args.classes, T(0));
      continue;
    }
    A others = 0;
    for (int32_t j = 0; j < classes; ++j)
      if (j != label) others += loss_weight(args.loss, A(logits[j]), j, rival);
    for (int32_t j = 0; j < classes; ++j)
      grad[j] = T(j == label ? A(-1) : loss_weight(args.loss, A(logits[j]), j, rival) / others);
  }
}

void attack_loss_cpu(const Tensor&, ScalarType dtype, const AttackLossArgs& args) {
  const int64_t grain = std::max<int64_t>(1, 8192 / args.classes);
  dispatch(dtype, [&](auto zero) {
    torch::stable::parallel_for(
        0, args.rows, grain, [&](int64_t begin, int64_t end) { attack_loss_rows<decltype(zero)>(args, begin, end); });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(amun_ext, CPU, m) { m.impl("attack_loss", TORCH_BOX(&attack_loss<attack_loss_cpu>)); }

}  // namespace amun
