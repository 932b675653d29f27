// What both back ends of the ops check of their arguments. Only torch's stable ABI is used, as of
// 2.11, so that one build serves every later torch, too.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>

namespace workbench {

using torch::headeronly::BFloat16;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_floating(const Tensor& x, const char* name) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, name,
                  " must be float32 or bfloat16");
  STD_TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
}

struct NormShape {
  int64_t rows, columns;
};

// x and residual [..., H], weight [H], one type and device.
inline NormShape check_norm(const Tensor& x, const Tensor& residual, const Tensor& weight) {
  check_floating(x, "x");
  check_floating(residual, "residual");
  check_floating(weight, "weight");
  STD_TORCH_CHECK(x.dim() >= 1 && residual.dim() == x.dim() && weight.dim() == 1,
                  "x and residual must be [..., H] and weight [H]");
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(x.size(i) == residual.size(i), "x and residual must have one shape");
  }
  const int64_t columns = weight.size(0);
  STD_TORCH_CHECK(x.size(x.dim() - 1) == columns, "weight must be as long as the rows of x");
  STD_TORCH_CHECK(
      x.scalar_type() == residual.scalar_type() && x.scalar_type() == weight.scalar_type(),
      "x, residual and weight must have one dtype");
  STD_TORCH_CHECK(x.get_device() == residual.get_device() && x.get_device() == weight.get_device(),
                  "x, residual and weight must be on one device");
  return {columns ? x.numel() / columns : 0, columns};
}

// gate_up [..., 2 I] -> [..., I], not written yet.
inline Tensor empty_gated(const Tensor& gate_up) {
  check_floating(gate_up, "gate_up");
  STD_TORCH_CHECK(gate_up.dim() >= 1 && gate_up.dim() <= 8, "gate_up must be [..., 2 I]");
  const int64_t last = gate_up.dim() - 1;
  STD_TORCH_CHECK(gate_up.size(last) % 2 == 0, "gate and up must be equally long");
  std::array<int64_t, 8> sizes{};
  for (int64_t i = 0; i < last; ++i) sizes[i] = gate_up.size(i);
  sizes[last] = gate_up.size(last) / 2;
  return torch::stable::new_empty(
      gate_up, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), last + 1));
}

}  // namespace workbench
