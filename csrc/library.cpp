// Every op of the package on one page, and the module whose import registers them.

#include <Python.h>
#include <torch/csrc/stable/library.h>

// Readable in the file itself, so that a build that cannot be loaded can still say what it is.
extern "C" __attribute__((visibility("default"), used)) const char amun_build_record[] =
    "AMUN_BUILD_RECORD" AMUN_BUILD_RECORD;

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

STABLE_TORCH_LIBRARY(amun_ext, m) {
  // Of logits [B, K]: is the row adversarial (by min_margin), which class is predicted, how many logits are left to go,
  // and the gradient from which the backward pass of the attacked loss starts.
  m.def(
      "attack_loss(Tensor logits, Tensor labels, str loss, float min_margin) -> "
      "(Tensor adversarial, Tensor predicted, Tensor margin, Tensor grad_logits)");

  // One step of every slot of the batch: store what is found, refill from the queue, move what is running. The lists
  // are in the order of SearchStepArgs and StepParams.
  m.def(
      "search_step_(Tensor(a!)[] batch, Tensor[] feedback, Tensor[] samples, Tensor(b!)[] state, Tensor queue, "
      "Tensor(c!) queue_position, str rule, int steps, float[] params, float[] bounds) -> ()");

  // One step of SGD over a list of parameters; where a mask is False, neither parameter nor momentum changes a bit.
  m.def(
      "masked_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] masks, "
      "float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool first, "
      "bool gradient_only) -> ()");

  // Of logits [..., N, C]: the Taylor softmax of the true class, which must be ahead by a margin; [..., N]. No clamp
  // with floor = -inf.
  m.def(
      "sm_taylor_softmax(Tensor logits, Tensor labels, int order, float margin, float temperature, float floor) -> "
      "Tensor");
}
