// What the ops do on a GPU. Rows stay in registers, loads and stores are of 16 bytes where the rows
// allow it, warps reduce by shuffles.
#include "ops.h"

#include <torch/csrc/stable/accelerator.h>

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace workbench {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

// The stream that torch queues work on now. Its function lives in the CUDA half of torch, which a
// build without a GPU cannot link to; where tensors are on a GPU, it is loaded.
cudaStream_t current_stream(int device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const GetStream get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<GetStream>(
                         dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  STD_TORCH_CHECK(get != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "torch told no stream");
  return static_cast<cudaStream_t>(stream);
}

__device__ float wide(float x) { return x; }
__device__ float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T>
__device__ T narrow(float x);
template <>
__device__ float narrow<float>(float x) { return x; }
template <>
__device__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <typename T, int N>
struct alignas(N * sizeof(T)) Vector {
  T values[N];
};

constexpr int MOST_HELD = 4;  // vectors of a row that a thread keeps; longer rows are read again
constexpr int MOST_THREADS = 1024;

template <typename T, int N>
__global__ void __launch_bounds__(MOST_THREADS)
    add_rms_norm_kernel(const Vector<T, N>* x, Vector<T, N>* residual, const Vector<T, N>* weight,
                        Vector<T, N>* out, int vectors, int columns, float eps) {
  __shared__ float of_warps[32];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * vectors;
  Vector<T, N> held[MOST_HELD];
  float squares = 0;
  auto add = [&](int at) {
    Vector<T, N> sum = residual[begin + at];
    const Vector<T, N> addend = x[begin + at];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      sum.values[j] = narrow<T>(wide(addend.values[j]) + wide(sum.values[j]));
      squares += wide(sum.values[j]) * wide(sum.values[j]);
    }
    residual[begin + at] = sum;
    return sum;
  };
#pragma unroll
  for (int i = 0; i < MOST_HELD; ++i) {
    const int at = i * blockDim.x + threadIdx.x;
    if (at < vectors) held[i] = add(at);
  }
  for (int at = MOST_HELD * blockDim.x + threadIdx.x; at < vectors; at += blockDim.x) add(at);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(0xFFFFFFFF, squares, step);
  if (lane == 0) of_warps[warp] = squares;
  __syncthreads();
  squares = lane < warps ? of_warps[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(0xFFFFFFFF, squares, step);
  const float inverse = rsqrtf(squares / static_cast<float>(columns) + eps);

  auto store = [&](int at, Vector<T, N> sum) {
    const Vector<T, N> scale = weight[at];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      // As the models' authors do it: the normed value is rounded before it is scaled.
      const T normed = narrow<T>(wide(sum.values[j]) * inverse);
      sum.values[j] = narrow<T>(wide(normed) * wide(scale.values[j]));
    }
    out[begin + at] = sum;
  };
#pragma unroll
  for (int i = 0; i < MOST_HELD; ++i) {
    const int at = i * blockDim.x + threadIdx.x;
    if (at < vectors) store(at, held[i]);
  }
  for (int at = MOST_HELD * blockDim.x + threadIdx.x; at < vectors; at += blockDim.x) {
    store(at, residual[begin + at]);  // this thread wrote it
  }
}

template <typename T, int N>
__global__ void silu_mul_kernel(const Vector<T, N>* gate_up, Vector<T, N>* out, int64_t count,
                                int vectors) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t row = index / vectors, at = row * 2 * vectors + index % vectors;
  const Vector<T, N> gate = gate_up[at], up = gate_up[at + vectors];
  Vector<T, N> product;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float value = wide(gate.values[j]);
    product.values[j] = narrow<T>(value / (1.0f + __expf(-value)) * wide(up.values[j]));
  }
  out[index] = product;
}

template <typename T, int N>
void launch_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, const Tensor& out,
                 NormShape shape, float eps, cudaStream_t stream) {
  const auto vectors = static_cast<int>(shape.columns / N);
  int threads = 32;
  while (threads < MOST_THREADS && threads * 2 < vectors) threads *= 2;  // two vectors a thread
  using V = Vector<T, N>;
  add_rms_norm_kernel<T, N><<<static_cast<unsigned>(shape.rows), threads, 0, stream>>>(
      static_cast<const V*>(x.data_ptr()), static_cast<V*>(residual.data_ptr()),
      static_cast<const V*>(weight.data_ptr()), static_cast<V*>(out.data_ptr()), vectors,
      static_cast<int>(shape.columns), eps);
}

template <typename T, int N>
void launch_silu(const Tensor& gate_up, const Tensor& out, int64_t width, cudaStream_t stream) {
  const int64_t count = out.numel() / N;
  const auto blocks = static_cast<unsigned>((count + 255) / 256);
  using V = Vector<T, N>;
  silu_mul_kernel<T, N><<<blocks, 256, 0, stream>>>(static_cast<const V*>(gate_up.data_ptr()),
                                                    static_cast<V*>(out.data_ptr()), count,
                                                    static_cast<int>(width / N));
}

bool aligned(const Tensor& x) { return reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0; }

Tensor add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  const NormShape shape = check_norm(x, residual, weight);
  STD_TORCH_CHECK(shape.columns < (1 << 30) && shape.rows < (1ll << 31), "x is too large");
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device());
  const cudaStream_t stream = current_stream(x.get_device());
  const bool whole = aligned(x) && aligned(residual) && aligned(weight);
  const auto add = static_cast<float>(eps);
  if (x.scalar_type() == ScalarType::Float) {
    (whole && shape.columns % 4 == 0 ? launch_norm<float, 4> : launch_norm<float, 1>)(
        x, residual, weight, out, shape, add, stream);
  } else {
    (whole && shape.columns % 8 == 0 ? launch_norm<__nv_bfloat16, 8>
                                     : launch_norm<__nv_bfloat16, 1>)(
        x, residual, weight, out, shape, add, stream);
  }
  check(cudaGetLastError(), "add_rms_norm_");
  return out;
}

Tensor silu_mul(const Tensor& gate_up) {
  Tensor out = empty_gated(gate_up);
  if (out.numel() == 0) return out;
  const int64_t width = out.size(out.dim() - 1);
  STD_TORCH_CHECK(width < (1 << 30) && out.numel() < (1ll << 38), "gate_up is too large");
  const torch::stable::accelerator::DeviceGuard guard(gate_up.get_device());
  const cudaStream_t stream = current_stream(gate_up.get_device());
  if (out.scalar_type() == ScalarType::Float) {
    (aligned(gate_up) && width % 4 == 0 ? launch_silu<float, 4> : launch_silu<float, 1>)(
        gate_up, out, width, stream);
  } else {
    (aligned(gate_up) && width % 8 == 0 ? launch_silu<__nv_bfloat16, 8>
                                        : launch_silu<__nv_bfloat16, 1>)(gate_up, out, width,
                                                                         stream);
  }
  check(cudaGetLastError(), "silu_mul");
  return out;
}

}  // namespace
}  // namespace workbench

STABLE_TORCH_LIBRARY_IMPL(workbench, CUDA, m) {
  m.impl("add_rms_norm_", TORCH_BOX(&workbench::add_rms_norm));
  m.impl("silu_mul", TORCH_BOX(&workbench::silu_mul));
}
