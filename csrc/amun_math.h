// The scalar arithmetic of every op, for g++ and nvcc; no torch, no memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#if defined(__CUDACC__)
#define AMUN_HD __host__ __device__ __forceinline__
#else
#define AMUN_HD inline __attribute__((always_inline))
#endif

namespace amun {

// Sums run in float for float32 and the half types, in double for float64.
template <typename T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

AMUN_HD float root(float value) { return sqrtf(value); }
AMUN_HD double root(double value) { return sqrt(value); }
AMUN_HD float exponential(float value) { return expf(value); }
AMUN_HD double exponential(double value) { return exp(value); }
AMUN_HD float power(float base, float exponent) { return powf(base, exponent); }
AMUN_HD double power(double base, double exponent) { return pow(base, exponent); }

template <typename A>
AMUN_HD bool is_nan(A value) {
  return value != value;
}

template <typename A>
AMUN_HD bool is_finite(A value) {
  return value - value == A(0);
}

// ------------------------------------------------------------------------------------------------------ search_step_

// The sums that every rule is computed from; d = x - x0, g is the gradient of the attacked loss.
template <typename A>
struct StepSums {
  A gg = 0, gd = 0, dd = 0, xx = 0;  // <g, g>, <g, d>, <d, d>, <x, x>

  AMUN_HD void add(A g, A x, A x0) {
    const A d = x - x0;
    gg += g * g;
    gd += g * d;
    dd += d * d;
    xx += x * x;
  }

  AMUN_HD void add(const StepSums& other) {
    gg += other.gg;
    gd += other.gd;
    dd += other.dd;
    xx += other.xx;
  }
};

// The shortest step that surely changes x: some roundings of its elements.
template <typename A>
AMUN_HD A shortest_step(const StepSums<A>& sums) {
  return A(16) * std::numeric_limits<A>::epsilon() * root(sums.xx);
}

// The next iterate: x <- clamp(origin * x0 + keep * d + push * g).
template <typename A>
struct StepUpdate {
  A origin, keep, push;
};

// The gradient without the elements that point out of the box at its bounds, since the box would cancel them. For a
// rule that uses the whole gradient the bounds are infinite.
template <typename A>
AMUN_HD A inward(A g, A x, A low, A high) {
  return ((x <= low) & (g < A(0))) | ((x >= high) & (g > A(0))) ? A(0) : g;
}

template <typename A>
AMUN_HD A next_value(A x, A x0, A g, const StepUpdate<A>& update, A low, A high) {
  const A moved = update.origin * x0 + update.keep * (x - x0) + update.push * g;
  return moved < low ? low : (moved > high ? high : moved);
}

// |d'| of d' = d + length g/|g|, without a second pass: |d'|^2 = <d,d> + 2 length <g,d>/|g| + length^2.
template <typename A>
AMUN_HD A moved_length(const StepSums<A>& sums, A norm, A length) {
  const A squared = sums.dd + A(2) * length * sums.gd / norm + length * length;
  return squared > A(0) ? root(squared) : A(0);
}

// Projected gradient ascent in the L2 ball: d' = d + length g/|g|, projected to radius eps (paper, Algorithm 1).
template <typename A>
AMUN_HD StepUpdate<A> pgd_update(const StepSums<A>& sums, A length, A eps) {
  const A norm = root(sums.gg), moved = moved_length(sums, norm, length);
  const A shrink = moved > eps ? eps / moved : A(1);
  return {A(1), shrink, shrink * length / norm};
}

// Decoupled direction and norm (Rony et al. 2019): d' = d + length g/|g|, scaled to radius eps.
template <typename A>
AMUN_HD StepUpdate<A> ddn_update(const StepSums<A>& sums, A length, A eps) {
  const A norm = root(sums.gg), moved = moved_length(sums, norm, length);
  const A scale = moved > A(0) ? eps / moved : A(1);
  return {A(1), scale, scale * length / norm};
}

// The next radius of that rule. It grows by the factor 1 + change from a point that is not adversarial. From an
// adversarial one it shrinks to where the linearised margin ends along the new direction u = d'/|d'|, at radius
// (margin + <g,d>) / <g,u>, but by at least `change` and at most twice as much.
template <typename A>
AMUN_HD A ddn_radius(const StepSums<A>& sums, A length, A eps, A best, A margin, bool adversarial, A change,
                     A overshoot) {
  if (!adversarial) return eps * (A(1) + change);
  const A norm = root(sums.gg), moved = moved_length(sums, norm, length);
  const A slope = (sums.gd + length * norm) / moved;
  const A crossing = slope > A(0) ? overshoot * (margin + sums.gd) / slope : eps;
  const A from = best < eps ? best : eps, most = from * (A(1) - change), least = from * (A(1) - A(2) * change);
  return crossing < most ? (crossing > least ? crossing : least) : most;
}

// One step to where the linearised margin ends (Moosavi-Dezfooli et al. 2016), times overshoot. `keep` < 1 first moves
// the point towards the original, and the margin is linearised there (Croce and Hein 2020). The push is finite for any
// margin, because infinity times a gradient element of 0 is NaN.
template <typename A>
AMUN_HD StepUpdate<A> deepfool_update(const StepSums<A>& sums, A margin, A keep, A overshoot, A shortest) {
  constexpr A most = std::numeric_limits<A>::max();
  const A norm = root(sums.gg), length = overshoot * (margin + (A(1) - keep) * sums.gd) / norm;
  const A push = (length > shortest ? length : shortest) / norm;
  return {A(1), keep, push < most ? (push > -most ? push : -most) : most};
}

// From `first` at step 0 to `last` at the last of `steps`, by a constant factor.
template <typename A>
AMUN_HD A scheduled(A first, A last, int32_t step, int32_t steps) {
  return steps > 1 ? first * power(last / first, A(step) / A(steps - 1)) : first;
}

// After `steps` steps at one radius the radius grows, up to eps_max. False if it cannot grow, also because of rounding:
// otherwise the search would not end.
template <typename A>
AMUN_HD bool next_step(A& eps, int32_t& step_count, int32_t steps, A eps_growth, A eps_max) {
  if (step_count == steps) {
    const A grown = eps * eps_growth < eps_max ? eps * eps_growth : eps_max;
    if (!(grown > eps)) return false;
    eps = grown;
    step_count = 0;
  }
  ++step_count;
  return true;
}

// ------------------------------------------------------------------------------------------------------- attack_loss

enum class Loss : int32_t { cross_entropy, margin };

// The class with the largest logit other than the label, the first one on ties, as in argmax. NaN is larger than any
// number.
template <typename A>
struct Rival {
  A logit = -std::numeric_limits<A>::infinity();
  int32_t index = std::numeric_limits<int32_t>::max();
};

template <typename A>
AMUN_HD Rival<A> max_rival(const Rival<A>& a, const Rival<A>& b) {
  if (is_nan(a.logit)) return a;
  if (is_nan(b.logit)) return b;
  return b.logit > a.logit || (b.logit == a.logit && b.index < a.index) ? b : a;
}

// The same where b comes after a.
template <typename A>
AMUN_HD Rival<A> max_later_rival(const Rival<A>& a, const Rival<A>& b) {
  return is_nan(a.logit) | (b.logit <= a.logit) ? a : b;
}

template <typename A>
AMUN_HD bool is_ahead(const Rival<A>& rival, A own, int64_t label) {
  return rival.logit > own || (rival.logit == own && rival.index < label);
}

// A row with NaN, or with an infinite rival, has no direction of ascent.
template <typename A>
AMUN_HD bool has_direction(A own, const Rival<A>& rival) {
  return is_finite(rival.logit) && !is_nan(own);
}

// The gradient that starts the backward pass is -1 at the label, and at the other classes these weights over their sum.
// Its length is free, because the step normalises the gradient. So the gradient of cross-entropy is divided by
// 1 - p_label, which leaves the softmax over the other classes: exact also where 1 - p_label underflows. For the margin
// the rival has the whole weight.
template <typename A>
AMUN_HD A loss_weight(Loss loss, A logit, int32_t index, const Rival<A>& rival) {
  if (loss == Loss::margin) return index == rival.index ? A(1) : A(0);
  return exponential(logit - rival.logit);
}

// ------------------------------------------------------------------------------------------------- sm_taylor_softmax

template <typename A>
struct TaylorRule {
  A scale, margin, floor;  // scale: 1 / temperature; floor: -inf where there is none

  template <typename B>
  AMUN_HD TaylorRule<B> as() const {
    return {B(scale), B(margin), B(floor)};
  }
};

// The first `order` terms of the exponential series, by Horner's rule. The comparison keeps NaN.
template <int order, typename A>
AMUN_HD A taylor(A logit, A margin, const TaylorRule<A>& rule) {
  constexpr double inverse_factorial[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040};
  const A z = logit * rule.scale - margin;
  A sum = A(inverse_factorial[order - 1]);
  for (int k = order - 2; k >= 0; --k) sum = sum * z + A(inverse_factorial[k]);
  return sum < rule.floor ? rule.floor : sum;
}

// ------------------------------------------------------------------------------------------------------- masked_sgd_

// The options of torch.optim.SGD, and those of the mask.
template <typename A>
struct SgdRule {
  A lr, momentum, weight_decay;
  A gradient_weight;  // in the momentum: 1 - dampening, 1 at the first step
  bool nesterov, maximize;
  bool first;          // the momentum is taken as zero, whatever its memory contains
  bool gradient_only;  // a false mask zeroes the gradient and changes nothing else

  template <typename B>
  AMUN_HD SgdRule<B> as() const {
    return {B(lr), B(momentum), B(weight_decay), B(gradient_weight), nesterov, maximize, first, gradient_only};
  }
};

template <typename A>
struct SgdStep {
  A param, momentum;
};

template <typename A>
AMUN_HD SgdStep<A> sgd_step(A param, A momentum, A grad, const SgdRule<A>& rule) {
  const A towards = rule.maximize ? -grad : grad;
  const A g = rule.weight_decay != A(0) ? towards + rule.weight_decay * param : towards;
  const A moved = rule.momentum * momentum + rule.gradient_weight * g;
  const A step = rule.nesterov ? g + rule.momentum * moved : moved;
  return {param - rule.lr * step, moved};
}

}  // namespace amun
