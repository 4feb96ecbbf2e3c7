// The argument checks of every op, called first by both backends: whoever reaches a kernel has passed them.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attack_loss.h"
#include "dispatch.h"
#include "masked_sgd.h"
#include "search_step.h"
#include "sm_taylor_softmax.h"

namespace amun {

using torch::stable::Tensor;

inline std::string text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string out = "[";
  for (size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + "]";
}

// The name of an argument that is an entry of a list, put together only where an error has to be told.
struct Entry {
  const char* list;
  size_t index;
};

inline std::ostream& operator<<(std::ostream& out, const Entry& entry) {
  return out << entry.list << '[' << entry.index << ']';
}

// The bytes that a tensor without gaps takes, and whether the op writes them.
struct Span {
  const char* name;
  const char* begin;
  const char* end;
  bool written;
};

inline Span span(const char* name, const Tensor& tensor, bool written) {
  const char* const begin = static_cast<const char*>(tensor.const_data_ptr());
  return {name, begin, begin + tensor.numel() * tensor.element_size(), written};
}

// What is written must not lie where anything else does, be it in part.
inline void check_apart(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span& one, const Span& other) { return one.begin < other.begin; });
  Span last{}, written{};  // those that end last, of all so far and of what is written
  for (const Span& each : spans) {
    if (each.begin == each.end) continue;
    const Span& before = each.written ? last : written;
    STD_TORCH_CHECK(each.begin >= before.end, before.name, " and ", each.name, " must not share memory");
    if (each.end > last.end) last = each;
    if (each.written && each.end > written.end) written = each;
  }
}

// As a float, which a double beyond its range has no value in.
inline bool is_finite_float(double value) { return std::abs(value) <= std::numeric_limits<float>::max(); }

inline bool is_float(ScalarType dtype) {
  return dispatch(dtype, [](auto) {});
}

inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename Name>
void check_dtype(const Name& name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have dtype ", toString(dtype), ", got ",
                  toString(tensor.scalar_type()));
}

inline void check_rows(const char* name, const Tensor& tensor, int64_t rows) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == rows, name, " must have shape [", rows, "], got ",
                  text(tensor.sizes()));
}

template <typename Name>
void check_device(const Name& name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.device() == like.device(), name, " must be on the device of the first argument");
}

// Rows of images: [rows, ...] with the trailing shape and dtype of `like`.
inline void check_images(const char* name, const Tensor& tensor, int64_t rows, const Tensor& like) {
  bool same = tensor.dim() == like.dim() && tensor.size(0) == rows;
  for (int64_t i = 1; same && i < like.dim(); ++i) same = tensor.size(i) == like.size(i);
  STD_TORCH_CHECK(same, name, " must have ", rows, " rows of the images' shape, got ", text(tensor.sizes()), " for x ",
                  text(like.sizes()));
  check_dtype(name, tensor, like.scalar_type());
  check_device(name, tensor, like);
}

template <typename E>
E* column(const char* name, const Tensor& tensor, int64_t rows, ScalarType dtype, const Tensor& like) {
  check_rows(name, tensor, rows);
  check_dtype(name, tensor, dtype);
  check_device(name, tensor, like);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  return static_cast<E*>(tensor.mutable_data_ptr());
}

inline Rule rule_of(const std::string& name) {
  constexpr const char* names[] = {"pgd", "ddn", "deepfool", "given"};  // in the order of Rule
  for (int32_t i = 0; i < 4; ++i)
    if (name == names[i]) return static_cast<Rule>(i);
  STD_TORCH_CHECK(false, "rule must be \"pgd\", \"ddn\", \"deepfool\" or \"given\", got \"", name, "\"");
}

inline SearchStepArgs check_search_step(
    const Tensor& x, const Tensor& slots, const Tensor& slot_labels, const Tensor& grad, const Tensor& adversarial,
    const Tensor& predicted, const Tensor& margin, const Tensor& inputs, const Tensor& labels, const Tensor& images,
    const Tensor& found_labels, const Tensor& eps, const Tensor& distance, const Tensor& round_step,
    const Tensor& grad_evals, const Tensor& status, const Tensor& queue, const Tensor& cursor, const std::string& rule,
    int64_t steps, double step_fraction, double last_step_fraction, double eps_growth, double last_eps_growth,
    double eps_max, double start, double overshoot, double pull_back, double low, double high) {
  STD_TORCH_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  STD_TORCH_CHECK(is_float(x.scalar_type()), "x must be float32, float64, float16 or bfloat16, got ",
                  toString(x.scalar_type()));
  STD_TORCH_CHECK(inputs.dim() >= 1, "inputs must have a batch dimension, got a scalar");
  STD_TORCH_CHECK(queue.dim() == 1, "queue must have shape [Q], got ", text(queue.sizes()));
  const int64_t pool = x.size(0), samples = inputs.size(0), queued = queue.size(0);
  const ScalarType real = accumulate_dtype(x.scalar_type());
  check_images("grad", grad, pool, x);
  check_images("inputs", inputs, samples, x);
  check_images("images", images, samples, x);
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
  STD_TORCH_CHECK(images.is_contiguous(), "images must be contiguous");
  STD_TORCH_CHECK(inputs.is_contiguous(), "inputs must be contiguous");
  STD_TORCH_CHECK(steps >= 1 && steps <= std::numeric_limits<int32_t>::max(), "steps must be in [1, 2^31), got ",
                  steps);
  const struct {
    const char* name;
    double value;
  } positive[] = {{"step_fraction", step_fraction},
                  {"last_step_fraction", last_step_fraction},
                  {"eps_max", eps_max},
                  {"start", start},
                  {"overshoot", overshoot}};
  constexpr double infinity = std::numeric_limits<double>::infinity();
  // Squares must be finite in the type of the sums.
  const double most = std::sqrt(real == ScalarType::Double ? std::numeric_limits<double>::max()
                                                           : static_cast<double>(std::numeric_limits<float>::max()));
  for (const auto& [name, value] : positive) {
    STD_TORCH_CHECK(value > 0 && value < infinity, name, " must be positive and finite, got ", value);
    STD_TORCH_CHECK(value <= most, name, " must be at most ", most, ", got ", value);
  }
  for (const auto& [name, value] :
       {std::pair{"step_fraction", step_fraction}, {"last_step_fraction", last_step_fraction}})
    STD_TORCH_CHECK(value * eps_max <= most, name, " * eps_max must be at most ", most, ", got ", value, " * ",
                    eps_max);
  // From 1.5 on, ddn_radius could shrink a radius to nothing.
  const bool shrinks = rule == "ddn";
  for (const auto& [name, value] : {std::pair{"eps_growth", eps_growth}, {"last_eps_growth", last_eps_growth}})
    STD_TORCH_CHECK(value > 1 && value < (shrinks ? 1.5 : most), name, " must be greater than 1 and ",
                    shrinks ? "less than 1.5" : "finite", ", got ", value);
  STD_TORCH_CHECK(pull_back > 0 && pull_back <= 1, "pull_back must be in (0, 1], got ", pull_back);
  STD_TORCH_CHECK(low < high, "low must be less than high, got ", low, " and ", high);
  int64_t width = 1;  // not numel / rows: a table without rows still has a row length
  for (int64_t i = 1; i < x.dim(); ++i) width *= x.size(i);
  SearchStepArgs args;
  args.pool_size = pool;
  args.book_size = samples;
  args.row_length = width;
  args.queue_length = queued;
  args.x = x.mutable_data_ptr();
  args.slots = column<int64_t>("slots", slots, pool, ScalarType::Long, x);
  args.slot_labels = column<int64_t>("slot_labels", slot_labels, pool, ScalarType::Long, x);
  args.grad = grad.const_data_ptr();
  args.adversarial = column<bool>("adversarial", adversarial, pool, ScalarType::Bool, x);
  args.predicted = column<int64_t>("predicted", predicted, pool, ScalarType::Long, x);
  args.margin = column<void>("margin", margin, pool, real, x);
  args.inputs = inputs.const_data_ptr();
  args.labels = column<int64_t>("labels", labels, samples, ScalarType::Long, x);
  args.images = images.mutable_data_ptr();
  args.found_labels = column<int64_t>("found_labels", found_labels, samples, ScalarType::Long, x);
  args.eps = column<void>("eps", eps, samples, real, x);
  args.distance = column<void>("distance", distance, samples, real, x);
  args.round_step = column<int32_t>("round_step", round_step, samples, ScalarType::Int, x);
  args.grad_evals = column<int32_t>("grad_evals", grad_evals, samples, ScalarType::Int, x);
  args.status = column<int8_t>("status", status, samples, ScalarType::Char, x);
  args.queue = column<int64_t>("queue", queue, queued, ScalarType::Long, x);
  args.cursor = column<int64_t>("cursor", cursor, 1, ScalarType::Long, x);
  args.rule = rule_of(rule);
  args.steps = static_cast<int32_t>(steps);
  args.step_fraction = step_fraction;
  args.last_step_fraction = last_step_fraction;
  args.eps_growth = eps_growth;
  args.last_eps_growth = last_eps_growth;
  args.eps_max = eps_max;
  args.start = start;
  args.overshoot = overshoot;
  args.pull_back = pull_back;
  args.low = low;
  args.high = high;
  check_apart({span("x", x, true), span("slots", slots, true), span("slot_labels", slot_labels, true),
               span("grad", grad, false), span("adversarial", adversarial, false), span("predicted", predicted, false),
               span("margin", margin, false), span("inputs", inputs, false), span("labels", labels, false),
               span("images", images, true), span("found_labels", found_labels, true), span("eps", eps, true),
               span("distance", distance, true), span("round_step", round_step, true),
               span("grad_evals", grad_evals, true), span("status", status, true), span("queue", queue, false),
               span("cursor", cursor, true)});
  return args;
}

inline AttackLossArgs check_attack_loss(const Tensor& logits, const Tensor& labels, const std::string& loss,
                                        double gap) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have shape [B, K], got ", text(logits.sizes()));
  STD_TORCH_CHECK(is_float(logits.scalar_type()), "logits must be float32, float64, float16 or bfloat16, got ",
                  toString(logits.scalar_type()));
  STD_TORCH_CHECK(logits.size(1) >= 2, "logits must have at least two classes, got ", text(logits.sizes()));
  STD_TORCH_CHECK(logits.size(1) <= int64_t(1) << 30, "logits must have at most 2^30 classes, got ",
                  text(logits.sizes()));
  STD_TORCH_CHECK(loss == "cross_entropy" || loss == "margin", "loss must be \"cross_entropy\" or \"margin\", got \"",
                  loss, "\"");
  STD_TORCH_CHECK(gap >= 0 && is_finite_float(gap), "gap must be finite and not negative, got ", gap);
  AttackLossArgs args;
  args.rows = logits.size(0);
  args.classes = logits.size(1);
  args.loss = loss == "margin" ? Loss::margin : Loss::cross_entropy;
  args.gap = gap;
  args.logits = logits.const_data_ptr();
  args.labels = column<int64_t>("labels", labels, args.rows, ScalarType::Long, logits);
  return args;
}

using AttackLossOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // adversarial, predicted, margin, grad_logits

inline AttackLossOutputs allocate(AttackLossArgs& args, const Tensor& logits) {
  const auto row = [&](ScalarType dtype) { return torch::stable::new_empty(logits, {args.rows}, dtype); };
  AttackLossOutputs out{row(ScalarType::Bool), row(ScalarType::Long), row(accumulate_dtype(logits.scalar_type())),
                        torch::stable::new_empty(logits, {args.rows, args.classes})};
  args.adversarial = static_cast<bool*>(std::get<0>(out).mutable_data_ptr());
  args.predicted = static_cast<int64_t*>(std::get<1>(out).mutable_data_ptr());
  args.margin = std::get<2>(out).mutable_data_ptr();
  args.grad_logits = std::get<3>(out).mutable_data_ptr();
  return out;
}

inline SmTaylorArgs check_sm_taylor_softmax(const Tensor& logits, const Tensor& labels, int64_t order, double margin,
                                            double temperature, double floor) {
  STD_TORCH_CHECK(logits.dim() >= 2, "logits must have shape [..., N, C], got ", text(logits.sizes()));
  STD_TORCH_CHECK(is_float(logits.scalar_type()), "logits must be float32, float64, float16 or bfloat16, got ",
                  toString(logits.scalar_type()));
  const int64_t samples = logits.size(-2), classes = logits.size(-1);
  STD_TORCH_CHECK(classes >= 2 && classes <= std::numeric_limits<int32_t>::max(),
                  "logits must have at least two classes and less than 2^31, got ", text(logits.sizes()));
  STD_TORCH_CHECK(order >= least_taylor_order && order <= most_taylor_order, "order must be in [", least_taylor_order,
                  ", ", most_taylor_order, "], got ", order);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  STD_TORCH_CHECK(is_finite_float(margin), "margin must be finite, got ", margin);
  STD_TORCH_CHECK(temperature > 0 && is_finite_float(temperature), "temperature must be positive and finite, got ",
                  temperature);
  STD_TORCH_CHECK((floor > 0 && is_finite_float(floor)) || floor == -infinity,
                  "floor must be positive and finite, or -inf for none, got ", floor);
  SmTaylorArgs args;
  args.rows = 1;
  for (int64_t i = 0; i < logits.dim() - 1; ++i) args.rows *= logits.size(i);
  args.samples = samples;
  args.classes = classes;
  args.rule = {1 / temperature, margin, floor};
  args.logits = logits.const_data_ptr();
  args.labels = column<int64_t>("labels", labels, samples, ScalarType::Long, logits);
  return args;
}

inline Tensor allocate(SmTaylorArgs& args, const Tensor& logits) {
  const auto sizes = logits.sizes();
  Tensor signal =
      torch::stable::new_empty(logits, {sizes.data(), sizes.size() - 1}, accumulate_dtype(logits.scalar_type()));
  args.signal = signal.mutable_data_ptr();
  return signal;
}

// Those parameters of the list that one kernel takes: of one dtype, with momentum in the same or in a wider one.
struct MaskedSgdGroup {
  ScalarType dtype;
  bool wide;
  int64_t blocks = 0;
  std::vector<MaskedSgdTensor> tensors = {};
};

inline bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous() || tensor.numel() == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t i = 0; i < tensor.dim(); ++i)
    if (tensor.size(i) != 1) dims.emplace_back(tensor.stride(i), tensor.size(i));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// What belongs to a parameter lies in memory as it does.
inline void check_beside(const Entry& name, const Tensor& tensor, ScalarType dtype, const Tensor& param) {
  const auto sizes = param.sizes(), own_sizes = tensor.sizes();
  const bool shape = std::equal(sizes.begin(), sizes.end(), own_sizes.begin(), own_sizes.end());
  STD_TORCH_CHECK(shape, name, " must have the shape of its parameter, ", text(sizes), ", got ", text(own_sizes));
  const auto strides = param.strides(), own_strides = tensor.strides();
  bool same = true;
  for (size_t i = 0; i < sizes.size(); ++i) same = same && (sizes[i] == 1 || strides[i] == own_strides[i]);
  same = same || param.numel() == 0;
  STD_TORCH_CHECK(same, name, " must have the strides of its parameter, ", text(strides), ", got ", text(own_strides));
  check_dtype(name, tensor, dtype);
  check_device(name, tensor, param);
}

inline std::pair<SgdRule<double>, std::vector<MaskedSgdGroup>> check_masked_sgd(
    const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& momentum_buffers,
    const std::vector<Tensor>& masks, double lr, double momentum, double dampening, double weight_decay, bool nesterov,
    bool maximize, bool first, bool gradient_only) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const struct {
    const char* name;
    double value, least;
  } numbers[] = {
      {"lr", lr, 0}, {"momentum", momentum, 0}, {"dampening", dampening, -infinity}, {"weight_decay", weight_decay, 0}};
  for (const auto& [name, value, least] : numbers)
    STD_TORCH_CHECK(value >= least && is_finite_float(value), name, " must be finite",
                    least == 0 ? " and not negative" : "", ", got ", value);
  STD_TORCH_CHECK(!nesterov || (momentum > 0 && dampening == 0),
                  "nesterov must come with momentum and without dampening, got ", momentum, " and ", dampening);
  const size_t count = params.size(), remembered = momentum == 0 ? 0 : count;
  STD_TORCH_CHECK(grads.size() == count, "grads must be as many as params, ", count, ", got ", grads.size());
  STD_TORCH_CHECK(momentum_buffers.size() == remembered, "momentum_buffers must be ", remembered, " with momentum ",
                  momentum, ", got ", momentum_buffers.size());
  STD_TORCH_CHECK(masks.empty() || masks.size() == count, "masks must be none or as many as params, ", count, ", got ",
                  masks.size());

  std::vector<MaskedSgdGroup> groups;
  std::vector<Span> spans;
  for (size_t i = 0; i < count; ++i) {
    const Entry name{"params", i};
    const Tensor& param = params[i];
    const ScalarType dtype = param.scalar_type();
    STD_TORCH_CHECK(is_float(dtype), name, " must be float32, float64, float16 or bfloat16, got ", toString(dtype));
    STD_TORCH_CHECK(is_dense(param), name, " must be dense and without overlap, got strides ", text(param.strides()),
                    " for ", text(param.sizes()));
    check_device(name, param, params[0]);
    check_beside({"grads", i}, grads[i], dtype, param);
    MaskedSgdTensor tensor{param.mutable_data_ptr(), grads[i].const_data_ptr(), nullptr, nullptr, param.numel(), 0};
    const bool wide = remembered && momentum_buffers[i].scalar_type() != dtype;
    if (remembered) {
      check_beside({"momentum_buffers", i}, momentum_buffers[i], wide ? accumulate_dtype(dtype) : dtype, param);
      tensor.momentum = momentum_buffers[i].mutable_data_ptr();
    }
    if (!masks.empty()) {
      check_beside({"masks", i}, masks[i], ScalarType::Bool, param);
      tensor.mask = static_cast<const uint8_t*>(masks[i].const_data_ptr());
    }
    if (!tensor.length) continue;
    spans.push_back(span("params", param, true));
    spans.push_back(span("grads", grads[i], false));
    if (remembered) spans.push_back(span("momentum_buffers", momentum_buffers[i], true));
    if (!masks.empty()) spans.push_back(span("masks", masks[i], false));
    auto group = std::find_if(groups.begin(), groups.end(),
                              [&](const auto& other) { return other.dtype == dtype && other.wide == wide; });
    if (group == groups.end()) group = groups.insert(group, {dtype, wide});
    tensor.first_block = group->blocks;
    group->blocks += blocks_of(tensor.length);
    group->tensors.push_back(tensor);
  }
  check_apart(std::move(spans));
  const double fresh = first || momentum == 0 ? 1 : 1 - dampening;
  return {{lr, momentum, fresh, weight_decay, nesterov, maximize, first, gradient_only}, std::move(groups)};
}

}  // namespace amun
