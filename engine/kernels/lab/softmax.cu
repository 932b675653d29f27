// Softmax of the rows of a bfloat16 matrix [rows, columns], in float32 inside: three rungs.
//
// The including text (see softmax.py) defines, for the last of them: THREADS of a block, VECTORS of
// eight numbers that a thread holds, and CLUSTER, the blocks that share a row. Every kernel first
// waits for the one before it, because the launcher lets it start early.

// Rung "cuda-naive": a thread does a row. Neighbouring threads read addresses a row apart.
extern "C" __global__ void softmax_naive(const u16* x, u16* out, int rows, int columns) {
  wait_for_previous_kernel();
  const i64 row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const u16* from = x + row * columns;
  u16* to = out + row * columns;
  float top = minus_infinity(), total = 0;
  for (int i = 0; i < columns; ++i) top = fmaxf(top, wide(from[i]));
  for (int i = 0; i < columns; ++i) total += __expf(wide(from[i]) - top);
  for (int i = 0; i < columns; ++i) to[i] = narrow(__expf(wide(from[i]) - top) / total);
}

// Rung "cuda-block": a block of 256 does a row, so neighbouring threads read neighbouring numbers;
// it meets in shared memory, a tree of eight steps.
template <typename Combine>
__device__ float tree(float value, float* shared, Combine combine) {
  shared[threadIdx.x] = value;
  for (int step = blockDim.x / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) {
      shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + step]);
    }
  }
  __syncthreads();
  const float all = shared[0];
  __syncthreads();
  return all;
}

extern "C" __global__ void softmax_block(const u16* x, u16* out, int columns) {
  extern __shared__ float shared[];  // of every thread
  wait_for_previous_kernel();
  const u16* from = x + (i64)blockIdx.x * columns;
  u16* to = out + (i64)blockIdx.x * columns;
  float top = minus_infinity(), total = 0;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) top = fmaxf(top, wide(from[i]));
  top = tree(top, shared, [](float a, float b) { return fmaxf(a, b); });
  for (int i = threadIdx.x; i < columns; i += blockDim.x) total += __expf(wide(from[i]) - top);
  total = tree(total, shared, [](float a, float b) { return a + b; });
  for (int i = threadIdx.x; i < columns; i += blockDim.x) {
    to[i] = narrow(__expf(wide(from[i]) - top) / total);
  }
}

// Rung "cuda-vector": 16 bytes a load, the row stays in registers, so it is read once; warps reduce
// by shuffles. A row too long for one block is shared by a cluster, whose blocks tell each other
// their partial results through distributed shared memory.
#ifdef THREADS
constexpr int WARPS = THREADS / 32;

struct Exchange {
  float of_warps[2][32];
  float of_blocks[2][CLUSTER];
};

__device__ __forceinline__ void cluster_arrive() {
  if (CLUSTER > 1) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
  if (CLUSTER > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void tell_block(float* slot, u32 rank, float value) {
  const u32 here = static_cast<u32>(__cvta_generic_to_shared(slot));
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.f32 [there], %2;\n"
      "}\n" ::"r"(here), "r"(rank), "f"(value) : "memory");
}

// All threads of the cluster get the result; `round` says which slots are free.
template <typename Combine>
__device__ __forceinline__ float reduce(float value, Exchange& exchange, int round, u32 rank,
                                        Combine combine) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(0xFFFFFFFF, value, step));
  }
  if (lane == 0) exchange.of_warps[round][warp] = value;
  __syncthreads();
  value = exchange.of_warps[round][lane % WARPS];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    if (step < WARPS) value = combine(value, __shfl_xor_sync(0xFFFFFFFF, value, step));
  }
  if (CLUSTER > 1) {
    if (threadIdx.x < CLUSTER) tell_block(&exchange.of_blocks[round][rank], threadIdx.x, value);
    cluster_arrive();
    cluster_wait();
    value = exchange.of_blocks[round][0];
#pragma unroll
    for (int i = 1; i < CLUSTER; ++i) value = combine(value, exchange.of_blocks[round][i]);
  }
  return value;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    softmax_vector(const uint4* x, uint4* out, int vectors) {
  extern __shared__ unsigned char memory[];
  Exchange& exchange = *reinterpret_cast<Exchange*>(memory);
  cluster_arrive();
  wait_for_previous_kernel();
  const u32 rank = blockIdx.x % CLUSTER;
  const i64 begin = (i64)(blockIdx.x / CLUSTER) * vectors;
  float held[VECTORS][8];
  float top = minus_infinity(), total = 0;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int at = (i * CLUSTER + rank) * THREADS + threadIdx.x;
    uint4 four = make_uint4(0xFF80FF80, 0xFF80FF80, 0xFF80FF80, 0xFF80FF80);  // minus infinity
    if (at < vectors) four = __ldcs(x + begin + at);
    const u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      held[i][2 * j] = wide(words[j]);
      held[i][2 * j + 1] = __uint_as_float(words[j] & 0xFFFF0000);
      top = fmaxf(top, fmaxf(held[i][2 * j], held[i][2 * j + 1]));
    }
  }
  cluster_wait();  // every block of the cluster runs, so its shared memory may be written
  top = reduce(top, exchange, 0, rank, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      held[i][j] = __expf(held[i][j] - top);
      total += held[i][j];
    }
  }
  total = reduce(total, exchange, 1, rank, [](float a, float b) { return a + b; });
  const float inverse = 1.0f / total;
#pragma unroll
  for (int i = 0; i < VECTORS; ++i) {
    const int at = (i * CLUSTER + rank) * THREADS + threadIdx.x;
    u32 words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      words[j] = narrow_pair(held[i][2 * j] * inverse, held[i][2 * j + 1] * inverse);
    }
    if (at < vectors) __stcs(out + begin + at, make_uint4(words[0], words[1], words[2], words[3]));
  }
}
#endif
