// The CUDA kernels as a Python module: each function takes the op's tensors as NumPy arrays and writes into them.
// Half types come as raw bits, hence the dtype by name; `threads` is the size of a block, 0 that of a launch.

#include "cuda_emulator.h"
// Then the kernels.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/attack_loss.cuh"
#include "cuda/masked_sgd.cuh"
#include "cuda/search_step.cuh"
#include "cuda/sm_taylor_softmax.cuh"
#include "dispatch.h"

namespace py = pybind11;

namespace {

using amun::ScalarType;

ScalarType scalar_type(const std::string& name) {
  if (name == "float32") return ScalarType::Float;
  if (name == "float64") return ScalarType::Double;
  if (name == "float16") return ScalarType::Half;
  if (name == "bfloat16") return ScalarType::BFloat16;
  throw std::invalid_argument("no kernel for " + name);
}

template <typename E>
E* data(py::array& array) {
  if (!(array.flags() & py::array::c_style)) throw std::invalid_argument("arrays must be contiguous");
  return static_cast<E*>(array.mutable_data());
}

// So many lanes for each row.
template <typename Kernel>
void launch_rows(int64_t rows, unsigned lanes, unsigned threads, Kernel kernel) {
  const unsigned rows_per_block = threads / lanes;
  cuda_emulator::launch((rows + rows_per_block - 1) / rows_per_block, {lanes, rows_per_block}, kernel);
}

void attack_loss(const std::string& dtype, unsigned threads, py::array logits, py::array labels, bool margin_loss,
                 double gap, py::array adversarial, py::array predicted, py::array margin, py::array grad_logits) {
  amun::AttackLossArgs args;
  args.rows = logits.shape(0);
  args.classes = logits.shape(1);
  args.loss = margin_loss ? amun::Loss::margin : amun::Loss::cross_entropy;
  args.gap = gap;
  args.logits = data<void>(logits);
  args.labels = data<int64_t>(labels);
  args.adversarial = data<bool>(adversarial);
  args.predicted = data<int64_t>(predicted);
  args.margin = data<void>(margin);
  args.grad_logits = data<void>(grad_logits);
  const py::gil_scoped_release release;
  amun::dispatch(scalar_type(dtype), [&](auto zero) {
    using T = decltype(zero);
    amun::dispatch_attack_loss<T>(args, [&](auto loss, auto whole) {
      launch_rows(args.rows, amun::attack_loss_lanes<T>(args.classes), threads ? threads : amun::attack_loss_threads,
                  [&] { amun::attack_loss_kernel<loss, whole, T>(args); });
    });
  });
}

// `rule` as its place in amun_ext.ops.RULES.
void search_step(const std::string& dtype, unsigned threads, py::array x, py::array slots, py::array slot_labels,
                 py::array grad, py::array adversarial, py::array predicted, py::array margin, py::array inputs,
                 py::array labels, py::array images, py::array found_labels, py::array eps, py::array distance,
                 py::array round_step, py::array grad_evals, py::array status, py::array queue, py::array cursor,
                 int32_t rule, int32_t steps, double step_fraction, double last_step_fraction, double eps_growth,
                 double last_eps_growth, double eps_max, double start, double overshoot, double pull_back, double low,
                 double high) {
  amun::SearchStepArgs args;
  args.pool_size = x.shape(0);
  args.book_size = inputs.shape(0);
  args.row_length = 1;
  for (py::ssize_t i = 1; i < x.ndim(); ++i) args.row_length *= x.shape(i);
  args.queue_length = queue.size();
  args.x = data<void>(x);
  args.slots = data<int64_t>(slots);
  args.slot_labels = data<int64_t>(slot_labels);
  args.grad = data<void>(grad);
  args.adversarial = data<bool>(adversarial);
  args.predicted = data<int64_t>(predicted);
  args.margin = data<void>(margin);
  args.inputs = data<void>(inputs);
  args.labels = data<int64_t>(labels);
  args.images = data<void>(images);
  args.found_labels = data<int64_t>(found_labels);
  args.eps = data<void>(eps);
  args.distance = data<void>(distance);
  args.round_step = data<int32_t>(round_step);
  args.grad_evals = data<int32_t>(grad_evals);
  args.status = data<int8_t>(status);
  args.queue = data<int64_t>(queue);
  args.cursor = data<int64_t>(cursor);
  args.rule = static_cast<amun::Rule>(rule);
  args.steps = steps;
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
  const py::gil_scoped_release release;
  amun::dispatch(scalar_type(dtype), [&](auto zero) {
    using T = decltype(zero);
    cuda_emulator::launch(args.pool_size, threads ? threads : amun::search_step_threads<T>(args.row_length), [&] {
      amun::are_whole<T>(args) ? amun::search_step_kernel<T, true>(args) : amun::search_step_kernel<T, false>(args);
    });
  });
}

// The lists without their empty tensors. `fresh` is what a gradient counts in the momentum.
void masked_sgd(const std::string& dtype, bool wide, unsigned threads, std::vector<py::array> params,
                std::vector<py::array> grads, std::vector<py::array> momentum_buffers, std::vector<py::array> masks,
                double lr, double momentum, double fresh, double weight_decay, bool nesterov, bool maximize, bool first,
                bool gradient_only) {
  std::vector<amun::MaskedSgdTensor> tensors;
  int64_t blocks = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    tensors.push_back({data<void>(params[i]), data<void>(grads[i]),
                       momentum_buffers.empty() ? nullptr : data<void>(momentum_buffers[i]),
                       masks.empty() ? nullptr : data<uint8_t>(masks[i]), params[i].size(), blocks});
    blocks += amun::blocks_of(params[i].size());
  }
  amun::MaskedSgdTable table{{lr, momentum, fresh, weight_decay, nesterov, maximize, first, gradient_only},
                             static_cast<int64_t>(tensors.size()),
                             tensors.data(),
                             {}};
  if (table.count <= amun::MaskedSgdTable::room) {
    std::copy(tensors.begin(), tensors.end(), table.near);
    table.far = nullptr;
  }
  const py::gil_scoped_release release;
  amun::dispatch(scalar_type(dtype), [&](auto zero) {
    using T = decltype(zero);
    cuda_emulator::launch(blocks, threads ? threads : amun::masked_sgd_threads, [&] {
      wide ? amun::masked_sgd_kernel<T, amun::Accumulate<T>>(table) : amun::masked_sgd_kernel<T, T>(table);
    });
  });
}

void sm_taylor_softmax(const std::string& dtype, unsigned threads, py::array logits, py::array labels, int64_t order,
                       double margin, double temperature, double floor, py::array signal) {
  amun::SmTaylorArgs args;
  args.rows = signal.size();
  args.samples = labels.size();
  args.classes = logits.shape(logits.ndim() - 1);
  args.rule = {1 / temperature, margin, floor};
  args.logits = data<void>(logits);
  args.labels = data<int64_t>(labels);
  args.signal = data<void>(signal);
  const py::gil_scoped_release release;
  amun::dispatch(scalar_type(dtype), [&](auto zero) {
    using T = decltype(zero);
    amun::dispatch_width<T>(args, [&](auto width) {
      amun::dispatch_order(order, [&](auto terms) {
        launch_rows(args.rows, amun::sm_taylor_lanes<width>(args.classes), threads ? threads : amun::sm_taylor_threads,
                    [&] { amun::sm_taylor_kernel<terms, width, T>(args); });
      });
    });
  });
}

// Kernels that test the emulator: in each, the threads from `leave` on have returned when the others meet.

py::array_t<int64_t> block_after_exit(unsigned threads, unsigned leave) {
  py::array_t<int64_t> seen(leave);
  int64_t* const out = seen.mutable_data();
  int64_t counter = 0;
  cuda_emulator::launch(1, threads, [&] {
    if (threadIdx.x >= leave) return;
    atomicAdd(&counter, int64_t(1));
    __syncthreads();
    out[threadIdx.x] = counter;
  });
  return seen;
}

void shuffle_after_exit(unsigned threads, unsigned leave) {
  cuda_emulator::launch(1, threads, [&] {
    if (threadIdx.x < leave) amun::lane_sum(1.0f);
  });
}

}  // namespace

PYBIND11_MODULE(amun_cuda_emulator, m) {
  m.def("attack_loss", &attack_loss);
  m.def("search_step_", &search_step);
  m.def("masked_sgd_", &masked_sgd);
  m.def("sm_taylor_softmax", &sm_taylor_softmax);
  m.def("block_after_exit", &block_after_exit);
  m.def("shuffle_after_exit", &shuffle_after_exit);
}
