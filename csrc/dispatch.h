// From a dtype known at run time to a type: dispatch(dtype, [&](auto zero) { using T = decltype(zero); ... }).
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace amun {

using torch::headeronly::ScalarType;

// Returns false for a dtype that no op takes.
template <typename Body>
bool dispatch(ScalarType dtype, Body&& body) {
  switch (dtype) {
    case ScalarType::Float: body(float{}); return true;
    case ScalarType::Double: body(double{}); return true;
    case ScalarType::Half: body(torch::headeronly::Half{}); return true;
    case ScalarType::BFloat16: body(torch::headeronly::BFloat16{}); return true;
    default: return false;
  }
}

}  // namespace amun
