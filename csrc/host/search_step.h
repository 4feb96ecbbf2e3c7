// search_step_ up to the launch, which is the backend's: launch(x, dtype, args).
#pragma once

#include "../search_step.h"

#include "checks.h"

namespace amun {

inline Rule rule_of(const std::string& name) {
  constexpr const char* names[] = {"pgd", "ddn", "deepfool", "external"};  // in the order of Rule
  for (int32_t i = 0; i < 4; ++i)
    if (name == names[i]) return static_cast<Rule>(i);
  STD_TORCH_CHECK(false, "rule must be \"pgd\", \"ddn\", \"deepfool\" or \"external\", got \"", name, "\"");
}

// `most`: the largest number whose square is finite in the type of the sums.
inline StepParams params_of(const std::vector<double>& values, Rule rule, double most) {
  const struct {
    const char* name;
    double StepParams::* field;
    double least, most;
  } expected[] = {{"eps_max", &StepParams::eps_max, 0, most},
                  {"step_fraction", &StepParams::step_fraction, 0, most},
                  {"last_step_fraction", &StepParams::last_step_fraction, 0, most},
                  {"eps_growth", &StepParams::eps_growth, 1, most},
                  {"last_eps_growth", &StepParams::last_eps_growth, 1, most},
                  {"start", &StepParams::start, 0, most},
                  {"overshoot", &StepParams::overshoot, 0, most},
                  {"pull_back", &StepParams::pull_back, 0, 1}};
  STD_TORCH_CHECK(values.size() == std::size(expected), "params must have ", std::size(expected), " numbers, got ",
                  values.size());
  StepParams params;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto& [name, field, low, high] = expected[i];
    STD_TORCH_CHECK(values[i] > low && values[i] <= high, name, " must be in (", low, ", ", high, "], got ", values[i]);
    params.*field = values[i];
  }
  const double step = std::max(params.step_fraction, params.last_step_fraction);
  STD_TORCH_CHECK(step * params.eps_max <= most, "step_fraction * eps_max must be at most ", most, ", got ", step,
                  " * ", params.eps_max);
  // From 1.5 on, ddn_radius could shrink a radius to nothing.
  const double growth = std::max(params.eps_growth, params.last_eps_growth);
  STD_TORCH_CHECK(rule != Rule::ddn || growth < 1.5, "eps_growth must be less than 1.5 with ddn, got ", growth);
  return params;
}

inline void check_length(const char* name, size_t length, size_t expected) {
  STD_TORCH_CHECK(length == expected, name, " must have ", expected, " entries, got ", length);
}

// The lists in the order of SearchStepArgs.
template <auto launch>
void search_step(std::vector<Tensor> batch, std::vector<Tensor> feedback, std::vector<Tensor> samples,
                 std::vector<Tensor> state, const Tensor& queue, Tensor queue_position, const std::string& rule,
                 int64_t steps, std::vector<double> params, std::vector<double> bounds) {
  check_length("batch", batch.size(), 3);
  check_length("feedback", feedback.size(), 4);
  check_length("samples", samples.size(), 2);
  check_length("state", state.size(), 7);
  check_length("bounds", bounds.size(), 2);
  const Tensor &x = batch[0], &inputs = samples[0], grad = torch::stable::contiguous(feedback[0]);
  STD_TORCH_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  STD_TORCH_CHECK(inputs.dim() >= 1, "inputs must have a batch dimension, got a scalar");
  STD_TORCH_CHECK(queue.dim() == 1, "queue must have shape [Q], got ", text(queue.sizes()));
  check_float("x", x);

  SearchStepArgs args;
  args.batch_size = x.size(0);
  args.num_samples = inputs.size(0);
  args.row_length = 1;  // not numel / rows: without rows there still is a row length
  for (int64_t i = 1; i < x.dim(); ++i) args.row_length *= x.size(i);
  args.queue_length = queue.size(0);

  // Each read of a tensor is a call into torch, and there are eighteen tensors: what they share is read once.
  const auto shape = x.sizes();
  const auto device = x.device();
  const ScalarType dtype = x.scalar_type(), sums = accumulate_dtype(dtype);
  const int64_t image_bytes = args.row_length * x.element_size(), sum_bytes = sums == ScalarType::Double ? 8 : 4;

  std::vector<Span> spans;
  spans.reserve(18);
  const auto take = [&]<typename E>(E*& place, const char* name, const Tensor& tensor, int64_t bytes) {
    char* const data = static_cast<char*>(tensor.mutable_data_ptr());
    place = reinterpret_cast<E*>(data);
    spans.push_back({name, data, data + bytes, !std::is_const_v<E>});
  };
  const auto take_images = [&](auto*& place, const char* name, const Tensor& tensor, int64_t rows) {
    const auto sizes = tensor.sizes();
    const bool same = sizes.size() == shape.size() && sizes[0] == rows &&
                      std::equal(sizes.begin() + 1, sizes.end(), shape.begin() + 1);
    STD_TORCH_CHECK(same, name, " must have ", rows, " rows of the images' shape, got ", text(sizes), " for x ",
                    text(shape));
    check_placed(name, tensor, dtype, device);
    take(place, name, tensor, rows * image_bytes);
  };
  const auto take_column = [&]<typename E>(E*& place, const char* name, const Tensor& tensor, int64_t rows) {
    if constexpr (std::is_void_v<std::remove_const_t<E>>) {
      check_column(name, tensor, rows, sums, device);
      take(place, name, tensor, rows * sum_bytes);
    } else {
      check_column(name, tensor, rows, dtype_of<std::remove_const_t<E>>(), device);
      take(place, name, tensor, rows * sizeof(E));
    }
  };
  take_images(args.x, "x", x, args.batch_size);
  take_column(args.sample_index, "sample_index", batch[1], args.batch_size);
  take_column(args.slot_labels, "slot_labels", batch[2], args.batch_size);
  take_images(args.grad, "grad", grad, args.batch_size);
  take_column(args.adversarial, "adversarial", feedback[1], args.batch_size);
  take_column(args.predicted, "predicted", feedback[2], args.batch_size);
  take_column(args.margin, "margin", feedback[3], args.batch_size);
  take_images(args.inputs, "inputs", inputs, args.num_samples);
  take_column(args.labels, "labels", samples[1], args.num_samples);
  take_images(args.images, "images", state[0], args.num_samples);
  take_column(args.found_labels, "found_labels", state[1], args.num_samples);
  take_column(args.eps, "eps", state[2], args.num_samples);
  take_column(args.distance, "distance", state[3], args.num_samples);
  take_column(args.step_count, "step_count", state[4], args.num_samples);
  take_column(args.grad_evals, "grad_evals", state[5], args.num_samples);
  take_column(args.status, "status", state[6], args.num_samples);
  take_column(args.queue, "queue", queue, args.queue_length);
  take_column(args.queue_position, "queue_position", queue_position, 1);
  must_not_alias(std::move(spans));

  STD_TORCH_CHECK(steps >= 1 && steps <= std::numeric_limits<int32_t>::max(), "steps must be in [1, 2^31), got ",
                  steps);
  const double largest =
      dtype == ScalarType::Double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  args.rule = rule_of(rule);
  args.steps = static_cast<int32_t>(steps);
  args.params = params_of(params, args.rule, std::sqrt(largest));
  args.low = bounds[0];
  args.high = bounds[1];
  STD_TORCH_CHECK(args.low < args.high, "low must be less than high, got ", args.low, " and ", args.high);
  launch(x, dtype, args);
}

}  // namespace amun
