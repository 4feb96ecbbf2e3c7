// The shared argument checks of the ops.
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
#include <type_traits>
#include <utility>
#include <vector>

#include "../dispatch.h"

namespace amun {

using torch::stable::Device;
using torch::stable::Tensor;

inline std::string text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string out = "[";
  for (size_t i = 0; i < sizes.size(); ++i) out += (i ? ", " : "") + std::to_string(sizes[i]);
  return out + "]";
}

// The name of an entry of a list, formatted only for an error.
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

// Written memory must not overlap any other.
inline void must_not_alias(std::vector<Span> spans) {
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

// Whether a value is finite as a float.
inline bool is_finite_float(double value) { return std::abs(value) <= std::numeric_limits<float>::max(); }

inline ScalarType accumulate_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <typename Name>
void check_float(const Name& name, const Tensor& tensor) {
  STD_TORCH_CHECK(dispatch(tensor.scalar_type(), [](auto) {}), name,
                  " must be float32, float64, float16 or bfloat16, got ", toString(tensor.scalar_type()));
}

template <typename Name>
void check_dtype(const Name& name, const Tensor& tensor, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must have dtype ", toString(dtype), ", got ",
                  toString(tensor.scalar_type()));
}

template <typename Name>
void check_device(const Name& name, const Tensor& tensor, const Device& device) {
  STD_TORCH_CHECK(tensor.device() == device, name, " must be on the device of the first argument");
}

inline void check_placed(const char* name, const Tensor& tensor, ScalarType dtype, const Device& device) {
  check_dtype(name, tensor, dtype);
  check_device(name, tensor, device);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline void check_column(const char* name, const Tensor& tensor, int64_t rows, ScalarType dtype, const Device& device) {
  const auto sizes = tensor.sizes();
  STD_TORCH_CHECK(sizes.size() == 1 && sizes[0] == rows, name, " must have shape [", rows, "], got ", text(sizes));
  check_placed(name, tensor, dtype, device);
}

// The dtype of a tensor whose elements the kernels see as E.
template <typename E>
constexpr ScalarType dtype_of() {
  if constexpr (std::is_same_v<E, int64_t>) return ScalarType::Long;
  if constexpr (std::is_same_v<E, int32_t>) return ScalarType::Int;
  if constexpr (std::is_same_v<E, int8_t>) return ScalarType::Char;
  if constexpr (std::is_same_v<E, bool>) return ScalarType::Bool;
}

}  // namespace amun
