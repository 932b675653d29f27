// out[M, N] = x[M, K] @ weight[N, K].T for some dozens to some hundreds of rows, on Hopper (sm_90a).
//
// A block computes at most 64 * ROW_GROUPS rows by BN weight rows (of gate and of up BN / 2 each, if
// GATED) over its share of K. It loads only the rows that there are: what the instruction multiplies
// beyond them is left over in shared memory, and nobody stores it. One thread keeps STAGES tiles of 64 columns in flight with the tensor memory
// accelerator, and a warp group for each 64 rows multiplies them (wgmma), all at their own pace.
// The CLUSTER blocks that compute different rows by the same weight rows form a cluster, in which
// each loads a part of every tile of weights for all, so that weights cross the L2 cache once.
// Weights are fetched before the kernel waits for the one that makes its activations.
//
// The including text (see linear_hopper.py) defines: ROW_GROUPS, BN, STAGES, CLUSTER (1 or 2), GATED,
// PARTS (the result is float32 parts), and SHAPE_N, SUMS, SUM_OPERANDS, A, B, KEEP of an instruction.

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int BM = 64 * ROW_GROUPS;
constexpr int BK = 64;  // 128 bytes, the widest swizzle
constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2;
constexpr int STAGE_BYTES = X_BYTES + W_BYTES;
constexpr int CONSUMER_WARPS = 4 * ROW_GROUPS;
constexpr int THREADS = 128 * (ROW_GROUPS + 1);
// Cache hints as the assembler encodes them: weights are read once, activations by every block.
constexpr u64 EVICT_FIRST = 0x12F0000000000000ull, EVICT_NORMAL = 0x1000000000000000ull;

struct __align__(64) TensorMap {
  unsigned char bytes[128];
};

// What a block does: its tile of weight rows and of activation rows, how many those are, and its
// columns.
struct Work {
  int tile_n, tile_m, rows, first_step, steps;
};

// Addresses in shared memory: of the tiles, and of the barriers of full and of empty stages.
struct Stages {
  u32 tiles, full, empty;
};

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier), "r"(parity) : "memory");
}

// Tell block `rank` of the cluster that a stage is free. Nothing was written, so nothing needs a
// fence: `release` at the scope of a cluster would cost a microsecond.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier), "r"(rank) : "memory");
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// Copy a box of a matrix to shared memory.
__device__ __forceinline__ void load_box(const TensorMap* map, u32 to, u32 barrier, int column,
                                         int row, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "l"(policy) : "memory");
}

// Copy a box to the same place in all blocks of the cluster.
__device__ __forceinline__ void load_box_for_all(const TensorMap* map, u32 to, u32 barrier,
                                                 int column, int row, u64 policy) {
  const unsigned short everybody = (1 << CLUSTER) - 1;
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(everybody), "l"(policy) : "memory");
}

// A matrix in shared memory: rows of 128 bytes, swizzled, eight rows to 1024 bytes.
__device__ __forceinline__ u64 operand(u32 address) {
  return (u64)((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// sums += a b: 64 rows by BN weight rows, 16 columns; keep == 0 forgets what was in sums.
__device__ __forceinline__ void multiply(float (&sums)[BN / 2], u64 a, u64 b, int keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, " KEEP ", 0;\n"
      "wgmma.mma_async.sync.aligned.m64n" SHAPE_N "k16.f32.bf16.bf16 {" SUMS "}, " A ", " B
      ", keep, 1, 1, 0, 0;\n"
      "}\n"
      : SUM_OPERANDS
      : "l"(a), "l"(b), "r"(keep));
}

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

__device__ __forceinline__ float gated(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

// The thread that loads.
__device__ __forceinline__ void produce(const TensorMap* x_map, const TensorMap* w_map, Stages at,
                                        Work work, int n) {
  auto load_x = [&](int step) {
    const u32 stage = step % STAGES;
    load_box(x_map, at.tiles + stage * STAGE_BYTES, at.full + 8 * stage,
             (work.first_step + step) * BK, work.tile_m * work.rows, EVICT_NORMAL);
  };
  auto load_w = [&](int step) {
    const u32 stage = step % STAGES, full = at.full + 8 * stage;
    const u32 to = at.tiles + stage * STAGE_BYTES + X_BYTES;
    const int column = (work.first_step + step) * BK;
    barrier_expect(full, work.rows * BK * 2 + W_BYTES);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row =
          GATED ? half * n + work.tile_n * (BN / 2) : work.tile_n * BN + half * (BN / 2);
      if (CLUSTER == 1) {
        load_box(w_map, to + half * (W_BYTES / 2), full, column, row, EVICT_FIRST);
      } else if (half == work.tile_m) {
        load_box_for_all(w_map, to + half * (W_BYTES / 2), full, column, row, EVICT_FIRST);
      }
    }
  };

  const int early = work.steps < STAGES ? work.steps : STAGES;
  for (int step = 0; step < early; ++step) load_w(step);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  for (int step = 0; step < early; ++step) load_x(step);
  for (int step = STAGES; step < work.steps; ++step) {
    barrier_wait(at.empty + 8 * (step % STAGES), (step / STAGES + 1) & 1);
    load_w(step);
    load_x(step);
  }
}

// A warp group multiplies its 64 rows.
__device__ __forceinline__ void consume(float (&sums)[BN / 2], Stages at, int group, int lane,
                                        int steps) {
  for (int step = 0; step < steps; ++step) {
    const u32 stage = step % STAGES;
    barrier_wait(at.full + 8 * stage, step / STAGES & 1);
    const u64 a = operand(at.tiles + stage * STAGE_BYTES + group * 64 * BK * 2);
    const u64 b = operand(at.tiles + stage * STAGE_BYTES + X_BYTES);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int part = 0; part < BK / 16; ++part) {
      multiply(sums, a + 2 * part, b + 2 * part, step + part);
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" ::: "memory");
    // The products of the step before are done: this warp needs its stage no more.
    if (step > 0 && lane < CLUSTER) barrier_arrive_at(at.empty + 8 * ((step - 1) % STAGES), lane);
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  // No use of the sums may move before the wait, which the compiler does not know to be theirs.
#pragma unroll
  for (int i = 0; i < BN / 2; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// A thread has, of two rows, two neighbours in every eight columns.
__device__ __forceinline__ void store(const float (&sums)[BN / 2], void* out, Work work, int m,
                                      int n, int first_row, int lane) {
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    const int row_of_tile = first_row + lane / 4 + 8 * below;
    const int row = work.tile_m * work.rows + row_of_tile;
    const u64 begin = ((u64)(PARTS ? blockIdx.y : 0) * m + row) * n;
#pragma unroll
    for (int j = 0; j < (GATED ? BN / 16 : BN / 8); ++j) {
      const int column = work.tile_n * (GATED ? BN / 2 : BN) + 8 * j + lane % 4 * 2;
      float low = sums[4 * j + 2 * below], high = sums[4 * j + 2 * below + 1];
      if (GATED) {
        low = gated(low, sums[BN / 4 + 4 * j + 2 * below]);
        high = gated(high, sums[BN / 4 + 4 * j + 2 * below + 1]);
      }
      const bool inside = row_of_tile < work.rows && row < m && column < n;
      if (PARTS) {
        float2* to = reinterpret_cast<float2*>(static_cast<float*>(out) + begin + column);
        if (inside) *to = make_float2(low, high);
      } else {
        u32* to = reinterpret_cast<u32*>(static_cast<unsigned short*>(out) + begin + column);
        const u32 both = pack(low, high);
        if (inside) *to = both;
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_hopper(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map,
                  void* out, int m, int n, int rows, int steps, int steps_per_split) {
  extern __shared__ unsigned char memory[];
  Stages at;
  at.tiles = (static_cast<u32>(__cvta_generic_to_shared(memory)) + 1023) / 1024 * 1024;
  at.full = at.tiles + STAGES * STAGE_BYTES;
  at.empty = at.full + 8 * STAGES;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Work work;
  work.tile_n = blockIdx.x / CLUSTER;
  work.tile_m = blockIdx.x % CLUSTER;  // the rank in the cluster, too
  work.rows = rows;
  work.first_step = blockIdx.y * steps_per_split;
  work.steps = min(steps_per_split, steps - work.first_step);

  asm volatile("griddepcontrol.launch_dependents;");
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(at.full + 8 * stage, 1);
      barrier_init(at.empty + 8 * stage, CONSUMER_WARPS * CLUSTER);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (CLUSTER > 1) cluster_sync();
  else __syncthreads();

  if (warp >= CONSUMER_WARPS) {
    if (warp == CONSUMER_WARPS && lane == 0) produce(&x_map, &w_map, at, work, n);
  } else {
    float sums[BN / 2];
    consume(sums, at, warp / 4, lane, work.steps);
    store(sums, out, work, m, n, warp * 16, lane);
  }
  // Nobody leaves while others may still signal its barriers.
  __syncwarp();
  if (CLUSTER > 1) cluster_sync();
}
