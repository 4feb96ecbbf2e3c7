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
  // Of logits [B, K]: is the row adversarial (by a gap), which class is predicted, how many logits are left to go, and
  // the gradient from which the backward pass of the attacked loss starts.
  m.def(
      "attack_loss(Tensor logits, Tensor labels, str loss, float gap) -> "
      "(Tensor adversarial, Tensor predicted, Tensor margin, Tensor grad_logits)");

  // One step of every slot of the pool: harvest what is finished, refill from the queue, move what is running.
  m.def(
      "search_step_(Tensor(a!) x, Tensor(b!) slots, Tensor(c!) slot_labels, "
      "Tensor grad, Tensor adversarial, Tensor predicted, Tensor margin, "
      "Tensor inputs, Tensor labels, Tensor(d!) images, Tensor(e!) found_labels, Tensor(f!) eps, Tensor(g!) distance, "
      "Tensor(h!) round_step, Tensor(i!) grad_evals, Tensor(j!) status, Tensor queue, Tensor(k!) cursor, "
      "str rule, int steps, float step_fraction, float last_step_fraction, float eps_growth, float last_eps_growth, "
      "float eps_max, float start, float overshoot, float pull_back, float low, float high) -> ()");

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
