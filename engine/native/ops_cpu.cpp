// The schemas of the ops and what they do on a CPU.
#include "ops.h"

#include <cmath>

namespace workbench {
namespace {

constexpr int64_t GRAIN = 16384;  // numbers that a thread gets at least

template <typename T>
void add_norm_rows(const T* x, T* residual, const T* weight, T* out, NormShape shape, float eps) {
  const int64_t columns = shape.columns;
  auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* from = x + row * columns;
      T* sums = residual + row * columns;
      T* to = out + row * columns;
      double squares = 0;  // of a long row, too
      for (int64_t i = 0; i < columns; ++i) {
        sums[i] = static_cast<T>(static_cast<float>(from[i]) + static_cast<float>(sums[i]));
        const float sum = static_cast<float>(sums[i]);
        squares += static_cast<double>(sum) * sum;
      }
      const auto inverse = static_cast<float>(
          1.0 / std::sqrt(squares / static_cast<double>(columns) + eps));
      for (int64_t i = 0; i < columns; ++i) {
        // As the models' authors do it: the normed value is rounded before it is scaled.
        const T normed = static_cast<T>(static_cast<float>(sums[i]) * inverse);
        to[i] = static_cast<T>(static_cast<float>(normed) * static_cast<float>(weight[i]));
      }
    }
  };
  torch::stable::parallel_for(0, shape.rows, GRAIN / (columns + 1) + 1, rows);
}

template <typename T>
void silu_mul_rows(const T* gate_up, T* out, int64_t rows, int64_t width) {
  auto run = [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = gate_up + row * 2 * width;
      const T* up = gate + width;
      for (int64_t i = 0; i < width; ++i) {
        const float value = static_cast<float>(gate[i]);
        out[row * width + i] =
            static_cast<T>(value / (1.0f + std::exp(-value)) * static_cast<float>(up[i]));
      }
    }
  };
  torch::stable::parallel_for(0, rows, GRAIN / (width + 1) + 1, run);
}

Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  const NormShape shape = check_norm(x, residual, weight);
  Tensor out = torch::stable::empty_like(x);
  const auto add = static_cast<float>(eps);
  if (x.scalar_type() == ScalarType::Float) {
    add_norm_rows(x.const_data_ptr<float>(), residual.mutable_data_ptr<float>(),
                  weight.const_data_ptr<float>(), out.mutable_data_ptr<float>(), shape, add);
  } else {
    add_norm_rows(x.const_data_ptr<BFloat16>(), residual.mutable_data_ptr<BFloat16>(),
                  weight.const_data_ptr<BFloat16>(), out.mutable_data_ptr<BFloat16>(), shape, add);
  }
  return out;
}

Tensor silu_mul(const Tensor& gate_up) {
  Tensor out = empty_gated(gate_up);
  const int64_t width = out.size(out.dim() - 1), rows = width ? out.numel() / width : 0;
  if (out.scalar_type() == ScalarType::Float) {
    silu_mul_rows(gate_up.const_data_ptr<float>(), out.mutable_data_ptr<float>(), rows, width);
  } else {
    silu_mul_rows(gate_up.const_data_ptr<BFloat16>(), out.mutable_data_ptr<BFloat16>(), rows,
                  width);
  }
  return out;
}

}  // namespace
}  // namespace workbench

STABLE_TORCH_LIBRARY(workbench, m) {
  m.def("add_rms_norm_(Tensor x, Tensor(a!) residual, Tensor weight, float eps) -> Tensor");
  m.def("silu_mul(Tensor gate_up) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(workbench, CPU, m) {
  m.impl("add_rms_norm_", TORCH_BOX(&workbench::add_rms_norm));
  m.impl("silu_mul", TORCH_BOX(&workbench::silu_mul));
}
