// A few blocks of every kernel, for ThreadSanitizer: compiled with -fsanitize=thread it fails where threads of a block
// touch the same memory without a barrier between them. One float type is enough, and spares it the torch headers.

#include "cuda_emulator.h"
// Then the kernels.
#include "cuda/attack_loss.cuh"
#include "cuda/masked_sgd.cuh"
#include "cuda/search_step.cuh"
#include "cuda/sm_taylor_softmax.cuh"

namespace {

constexpr unsigned threads = 64;
constexpr float inf = std::numeric_limits<float>::infinity();

// Rows of one lane, of some and of a whole warp, and one that is too long to be kept; the last warp is not full.
template <typename Kernel>
void launch_rows(int64_t rows, unsigned lanes, Kernel kernel) {
  const unsigned rows_per_block = threads / lanes;
  cuda_emulator::launch((rows + rows_per_block - 1) / rows_per_block, {lanes, rows_per_block}, kernel);
}

void run_attack_loss(int64_t classes) {
  constexpr int64_t rows = 5;
  std::vector<float> logits(rows * classes), grad_logits(rows * classes), margin(rows);
  for (int64_t i = 0; i < rows * classes; ++i) logits[i] = std::sin(float(i));
  std::vector<int64_t> labels{0, 1, classes - 1, -1, 1}, predicted(rows);
  bool adversarial[rows];
  amun::AttackLossArgs args{rows,          classes,     amun::Loss::cross_entropy, 0.5,           logits.data(),
                            labels.data(), adversarial, predicted.data(),          margin.data(), grad_logits.data()};
  amun::dispatch_attack_loss<float>(args, [&](auto loss, auto whole) {
    launch_rows(rows, amun::attack_loss_lanes<float>(classes),
                [&] { amun::attack_loss_kernel<loss, whole, float>(args); });
  });
}

// Slots by turns running, adversarial, without a gradient and idle; the queue has a sample for most of those that free.
// What is adversarial ends with pgd; with ddn it is kept, and goes on in the same step. A row of up to 768 elements is
// kept between sums and move; one whose length is no multiple of 4 is read element by element.
void run_search_step(amun::Rule rule, int64_t length) {
  constexpr int64_t slots = 4, samples = 16;
  std::vector<float> x(slots * length, 0.5f), grad(slots * length, 1.0f), inputs(samples * length, 0.25f),
      images = inputs, eps(samples, 1.0f), distance(samples, inf), margin(slots, 0.5f);
  std::vector<int64_t> sample_index(slots), slot_labels(slots), predicted(slots, 3), labels(samples, 1),
      found_labels(samples), queue{8, 9, 10}, queue_position{0};
  std::vector<int32_t> step_count(samples), grad_evals(samples);
  std::vector<int8_t> status(samples);
  bool adversarial[slots];
  for (int64_t slot = 0; slot < slots; ++slot) {
    adversarial[slot] = slot % 4 == 1;
    if (adversarial[slot]) margin[slot] = -0.5f;
    sample_index[slot] = slot % 4 == 3 ? -1 : slot;
    if (slot % 4 == 2) std::fill_n(grad.begin() + slot * length, length, 0.0f);
  }
  amun::SearchStepArgs args{};
  args.batch_size = slots, args.num_samples = samples, args.row_length = length,
  args.queue_length = int64_t(queue.size());
  args.x = x.data(), args.sample_index = sample_index.data(), args.slot_labels = slot_labels.data(),
  args.grad = grad.data();
  args.adversarial = adversarial, args.predicted = predicted.data(), args.margin = margin.data();
  args.inputs = inputs.data(), args.labels = labels.data(), args.images = images.data();
  args.found_labels = found_labels.data(), args.eps = eps.data(), args.distance = distance.data();
  args.step_count = step_count.data(), args.grad_evals = grad_evals.data(), args.status = status.data();
  args.queue = queue.data(), args.queue_position = queue_position.data();
  args.rule = rule, args.steps = 2, args.low = 0, args.high = 1;
  args.params = {4, 0.5, 0.5, 1.25, 1.25, 1, 1, 1};
  for (int step = 0; step < 3; ++step)
    cuda_emulator::launch(slots, threads, [&] {
      amun::are_whole<float>(args) ? amun::search_step_kernel<float, true>(args)
                                   : amun::search_step_kernel<float, false>(args);
    });
}

// Two tensors, the first of them a block and a bit long; neither bit nor second are whole vectors.
void run_masked_sgd() {
  constexpr int64_t small = 5, large = amun::sgd_block + 7;
  std::vector<float> param(small + large, 1.0f), grad(small + large, 0.5f), momentum(small + large);
  std::vector<uint8_t> mask(small + large);
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 3 == 0;
  amun::MaskedSgdTable table{{0.5, 0.5, 0, 1, true, false, false, false}, 2, nullptr, {}};
  table.inline_list[0] = {param.data(), grad.data(), momentum.data(), mask.data(), large, 0};
  table.inline_list[1] = {&param[large], &grad[large], &momentum[large], &mask[large], small, 2};
  cuda_emulator::launch(3, threads, [&] { amun::masked_sgd_kernel<float, float>(table); });
}

void run_sm_taylor_softmax(int64_t classes) {
  constexpr int64_t models = 3, samples = 25, rows = models * samples;
  std::vector<float> logits(rows * classes), signal(rows);
  for (int64_t i = 0; i < rows * classes; ++i) logits[i] = std::sin(float(i));
  std::vector<int64_t> labels(samples, 1);
  const amun::SmTaylorArgs args{rows,          samples,       classes,      4, {0.5, 0.6, 1e-3},
                                logits.data(), labels.data(), signal.data()};
  amun::dispatch_width<float>(args, [&](auto width) {
    launch_rows(rows, amun::sm_taylor_lanes<width>(classes), [&] { amun::sm_taylor_kernel<4, width, float>(args); });
  });
}

}  // namespace

int main() {
  run_masked_sgd();
  for (const int64_t classes : {2, 10, 70}) run_sm_taylor_softmax(classes);
  for (const int64_t classes : {2, 37, 1100}) run_attack_loss(classes);
  for (const int64_t length : {131, 1604})
    for (const amun::Rule rule : {amun::Rule::pgd, amun::Rule::ddn}) run_search_step(rule, length);
}
