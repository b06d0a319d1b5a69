// Checks of arguments; every message is "NAME must be ..., got ...".
//
// unite_ext/ops.py and unite_ext/step_parts.py have already checked with Python's exception types. These checks keep
// direct calls of the operators memory safe.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace unite {

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "unite_ext: ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) fail(name, " must be from ", low, " to ", high, ", got ", value);
}

inline void check_length(const char* name, size_t length, size_t expected) {
  if (length != expected) fail(name, " must have one entry per member, ", expected, ", got ", length);
}

inline void check_same_device(const std::string& name, const torch::stable::Tensor& tensor,
                              const torch::stable::Tensor& first) {
  if (tensor.is_cuda() != first.is_cuda() || tensor.get_device_index() != first.get_device_index())
    fail(name, " must be on the device of the first tensor");
}

// A contiguous tensor of the given dtype, on the device of `first`.
inline void check_dense(const char* name, const torch::stable::Tensor& tensor, torch::headeronly::ScalarType dtype,
                        int64_t dim, const torch::stable::Tensor& first) {
  if (tensor.scalar_type() != dtype) fail(name, " has the wrong dtype");
  if (tensor.dim() != dim) fail(name, " must have ", dim, " dimensions, got ", tensor.dim());
  if (!tensor.is_contiguous()) fail(name, " must be contiguous");
  check_same_device(name, tensor, first);
}

}  // namespace unite
