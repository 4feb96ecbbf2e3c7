// The schemas of all ops, and the module whose import registers them.

#include <Python.h>
#include <torch/csrc/stable/library.h>

// Read from the file itself, also if it cannot be loaded.
extern "C" __attribute__((visibility("default"), used)) const char amun_build_record[] =
    "AMUN_BUILD_RECORD" AMUN_BUILD_RECORD;

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

STABLE_TORCH_LIBRARY(amun_ext, m) {
  // For logits [B, K]: whether the row is adversarial by min_margin, the predicted class, the margin in logits, and the
  // gradient that starts the backward pass of the attacked loss.
  m.def(
      "attack_loss(Tensor logits, Tensor labels, str loss, float min_margin) -> "
      "(Tensor adversarial, Tensor predicted, Tensor margin, Tensor grad_logits)");

  // One step of every slot of the batch: store found examples, refill slots from the queue, move the others. The lists
  // are in the order of SearchStepArgs and StepParams.
  m.def(
      "search_step_(Tensor(a!)[] batch, Tensor[] feedback, Tensor[] samples, Tensor(b!)[] state, Tensor queue, "
      "Tensor(c!) queue_position, str rule, int steps, float[] params, float[] bounds) -> ()");

  // One step of SGD over a list of parameters; where a mask is False, parameter and momentum are unchanged.
  m.def(
      "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] masks, "
      "float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool first, "
      "bool gradient_only) -> ()");

  // For logits [..., N, C]: the soft-margin Taylor softmax [..., N] of the true class. No clamp with floor = -inf.
  m.def(
      "sm_taylor_softmax(Tensor logits, Tensor labels, int order, float margin, float temperature, float floor) -> "
      "Tensor");
}
