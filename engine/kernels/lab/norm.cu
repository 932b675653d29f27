// RMSNorm or LayerNorm of the rows of a bfloat16 matrix [rows, columns], in float32 inside.
//
// The including text (see norm.py) defines: MEAN, 1 for LayerNorm, whose bias is the `bias`
// argument, 0 for RMSNorm; for the last rung THREADS of a block and VECTORS of eight numbers that a
// thread holds. Every kernel first waits for the one before it, because the launcher lets it start
// early.

__device__ __forceinline__ float scaled(float centred, float inverse, float weight, float bias) {
  return MEAN ? centred * inverse * weight + bias : centred * inverse * weight;
}

// Rung "cuda-naive": a thread does a row. Neighbouring threads read addresses a row apart. The
// variance is of centred numbers: the mean of squares less the square of the mean would cancel.
extern "C" __global__ void norm_naive(const u16* x, const u16* weight, const u16* bias, u16* out,
                                      int rows, int columns, float eps) {
  wait_for_previous_kernel();
  const i64 row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const u16* from = x + row * columns;
  u16* to = out + row * columns;
  float mean = 0, squares = 0;
  if (MEAN) {
    for (int i = 0; i < columns; ++i) mean += wide(from[i]);
    mean /= columns;
  }
  for (int i = 0; i < columns; ++i) {
    const float centred = wide(from[i]) - mean;
    squares += centred * centred;
  }
  const float inverse = rsqrtf(squares / columns + eps);
  for (int i = 0; i < columns; ++i) {
    const float shift = MEAN ? wide(bias[i]) : 0.0f;
    to[i] = narrow(scaled(wide(from[i]) - mean, inverse, wide(weight[i]), shift));
  }
}

// Rung "cuda-block": a block of 256 does a row, so neighbouring threads read neighbouring numbers;
// it meets in shared memory, a tree of eight steps.
__device__ float tree_sum(float value, float* shared) {
  shared[threadIdx.x] = value;
  for (int step = blockDim.x / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) shared[threadIdx.x] += shared[threadIdx.x + step];
  }
  __syncthreads();
  const float all = shared[0];
  __syncthreads();
  return all;
}

extern "C" __global__ void norm_block(const u16* x, const u16* weight, const u16* bias, u16* out,
                                      int columns, float eps) {
  extern __shared__ float shared[];  // of every thread
  wait_for_previous_kernel();
  const u16* from = x + (i64)blockIdx.x * columns;
  u16* to = out + (i64)blockIdx.x * columns;
  float mean = 0, squares = 0;
  if (MEAN) {
    for (int i = threadIdx.x; i < columns; i += blockDim.x) mean += wide(from[i]);
    mean = tree_sum(mean, shared) / columns;
  }
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    const float centred = wide(from[i]) - mean;
    squares += centred * centred;
  }
  const float inverse = rsqrtf(tree_sum(squares, shared) / columns + eps);
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    const float shift = MEAN ? wide(bias[i]) : 0.0f;
    to[i] = narrow(scaled(wide(from[i]) - mean, inverse, wide(weight[i]), shift));
  }
}

// Rung "cuda-vector": 16 bytes a load, the row stays in registers, so it is read once, and warps
// reduce by shuffles.
#ifdef THREADS
constexpr int WARPS = THREADS / 32;

__device__ __forceinline__ float sum(float value, float* of_warps) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, step);
  if (lane == 0) of_warps[warp] = value;
  __syncthreads();
  value = lane < WARPS ? of_warps[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, step);
  return value;
}

__device__ __forceinline__ void unpack(uint4 four, float (&eight)[8]) {
  const u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    eight[2 * j] = wide(words[j]);
    eight[2 * j + 1] = __uint_as_float(words[j] & 0xFFFF0000);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    norm_vector(const uint4* x, const uint4* weight, const uint4* bias, uint4* out, int vectors,
                float eps) {
  extern __shared__ float of_warps[];  // 2 x 32
  wait_for_previous_kernel();
  const i64 begin = (i64)blockIdx.x * vectors;
  float held[VECTORS][8];
  float mean = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int at = i * THREADS + threadIdx.x;
    unpack(at < vectors ? __ldcs(x + begin + at) : make_uint4(0, 0, 0, 0), held[i]);
    if (MEAN) {
#pragma unroll
      for (int j = 0; j < 8; ++j) mean += held[i][j];
    }
  }
  if (MEAN) mean = sum(mean, of_warps) / (8 * vectors);
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (MEAN) held[i][j] -= mean;
      if (i * THREADS + threadIdx.x < vectors) squares += held[i][j] * held[i][j];
    }
  }
  const float inverse = rsqrtf(sum(squares, of_warps + 32) / (8 * vectors) + eps);
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int at = i * THREADS + threadIdx.x;
    if (at < vectors) {
      float by[8], shift[8] = {};
      unpack(weight[at], by);
      if (MEAN) unpack(bias[at], shift);
      u32 words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        words[j] = narrow_pair(scaled(held[i][2 * j], inverse, by[2 * j], shift[2 * j]),
                               scaled(held[i][2 * j + 1], inverse, by[2 * j + 1], shift[2 * j + 1]));
      }
      __stcs(out + begin + at, make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
}
#endif
