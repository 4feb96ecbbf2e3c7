// The arithmetic of every op, once, for g++ and nvcc alike: scalars in, scalars out, no torch, no memory.
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

template <typename A>
AMUN_HD bool is_nan(A value) {
  return value != value;
}

template <typename A>
AMUN_HD bool is_finite(A value) {
  return value - value == A(0);
}

// ------------------------------------------------------------------------------------------------------ search_step_

// The three reductions that every rule is made of; d = x - x0, g = the gradient of the attacked loss.
template <typename A>
struct StepSums {
  A gg = 0, gd = 0, dd = 0;  // <g, g>, <g, d>, <d, d>
};

// The next iterate: x <- clamp(x0 + keep * d + push * g).
template <typename A>
struct StepMove {
  A keep, push;
};

// Projected gradient ascent in the L2 ball: d' = d + alpha g/|g|, pulled back to radius eps. |d'| needs no second pass
// over the data: |d'|^2 = <d,d> + 2 alpha <g,d>/|g| + alpha^2.
template <typename A>
AMUN_HD StepMove<A> pgd_move(const StepSums<A>& sums, A alpha, A eps) {
  const A per_norm = A(1) / root(sums.gg);
  const A moved = sums.dd + A(2) * alpha * sums.gd * per_norm + alpha * alpha;
  const A shrink = moved > eps * eps ? eps / root(moved) : A(1);
  return {shrink, shrink * alpha * per_norm};
}

template <typename A>
AMUN_HD A next_value(A x, A x0, A g, const StepMove<A>& move, A low, A high) {
  const A moved = x0 + move.keep * (x - x0) + move.push * g;
  return moved < low ? low : (moved > high ? high : moved);
}

// A round is `steps` steps at one radius; then the radius grows, up to eps_max. False when no radius is left: also one
// that rounding keeps from growing, or the search would never end.
template <typename A>
AMUN_HD bool next_step(A& eps, int32_t& round_step, int32_t steps, A eps_growth, A eps_max) {
  if (round_step == steps) {
    const A grown = eps * eps_growth < eps_max ? eps * eps_growth : eps_max;
    if (!(grown > eps)) return false;
    eps = grown;
    round_step = 0;
  }
  ++round_step;
  return true;
}

// ------------------------------------------------------------------------------------------------------- attack_loss

enum class Loss : int32_t { cross_entropy, margin };

// The strongest class other than the label; the first one on ties, as argmax has it. A NaN wins, so that it is noticed.
template <typename A>
struct Rival {
  A logit = -std::numeric_limits<A>::infinity();
  int64_t index = std::numeric_limits<int64_t>::max();
};

template <typename A>
AMUN_HD Rival<A> stronger(const Rival<A>& a, const Rival<A>& b) {
  if (is_nan(a.logit)) return a;
  if (is_nan(b.logit)) return b;
  return b.logit > a.logit || (b.logit == a.logit && b.index < a.index) ? b : a;
}

template <typename A>
AMUN_HD bool is_adversarial(A own, int64_t label, const Rival<A>& rival) {
  return rival.logit > own || (rival.logit == own && rival.index < label);
}

// A row whose logits are NaN, or whose rival is infinite, has no direction to climb.
template <typename A>
AMUN_HD bool has_direction(A own, const Rival<A>& rival) {
  return is_finite(rival.logit) && !is_nan(own);
}

// What the loss adds for one class to the gradient that starts the backward pass. Its length is free, because the step
// normalises the gradient; so cross-entropy is divided by 1 - p_label and becomes the softmax over the other classes
// minus one at the label. That is the same direction, and exact where 1 - p_label has long underflowed.
template <typename A>
AMUN_HD A loss_gradient(Loss loss, A logit, int64_t index, int64_t label, const Rival<A>& rival, A others) {
  if (index == label) return A(-1);
  if (loss == Loss::margin) return index == rival.index ? A(1) : A(0);
  return exponential(logit - rival.logit) / others;
}

}  // namespace amun
