// Causal attention of one prompt, bfloat16, heads of 128: a naive kernel, and one on tensor cores.
//
// q [tokens, heads, 128], k and v [tokens, kv_heads, 128], out as q. Every kernel first waits for
// the one before it, because the launcher lets it start early. The including text (see
// attention_prefill.py) defines, for the second, KEYS of a tile and WARPS of a block.

constexpr int DIM = 128;

// Rung "cuda-naive": a warp does a query of a head, four dimensions a lane, one key at a time, with
// an online softmax. Every query reads all its keys and values by itself.
extern "C" __global__ void attention_naive(const uint2* q, const uint2* k, const uint2* v,
                                           uint2* out, int tokens, int heads, int kv_heads,
                                           float scale_log2) {
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, head = blockIdx.y;
  const int query = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (query >= tokens) return;
  const int kv_head = head / (heads / kv_heads);
  const i64 at = ((i64)query * heads + head) * 32 + lane;
  const uint2 mine = q[at];
  const float q0 = wide(mine.x), q1 = wide_high(mine.x), q2 = wide(mine.y), q3 = wide_high(mine.y);
  float top = minus_infinity(), total = 0, o0 = 0, o1 = 0, o2 = 0, o3 = 0;
  for (int token = 0; token <= query; ++token) {
    const i64 from = ((i64)token * kv_heads + kv_head) * 32 + lane;
    const uint2 key = k[from], value = v[from];
    float logit = q0 * wide(key.x) + q1 * wide_high(key.x) + q2 * wide(key.y) + q3 * wide_high(key.y);
    for (int step = 16; step > 0; step /= 2) logit += __shfl_xor_sync(0xFFFFFFFF, logit, step);
    logit *= scale_log2;
    const float new_top = fmaxf(top, logit);
    const float shrink = power_of_two(top - new_top), weight = power_of_two(logit - new_top);
    total = total * shrink + weight;
    o0 = o0 * shrink + weight * wide(value.x);
    o1 = o1 * shrink + weight * wide_high(value.x);
    o2 = o2 * shrink + weight * wide(value.y);
    o3 = o3 * shrink + weight * wide_high(value.y);
    top = new_top;
  }
  out[at] = make_uint2(narrow_pair(o0 / total, o1 / total), narrow_pair(o2 / total, o3 / total));
}

// Rung "cuda-tensor": FlashAttention-2 (Dao, arXiv 2307.08691). A block of four warps does 128
// queries of a head, 32 a warp, over tiles of KEYS keys and values, which come two tiles deep to
// shared memory by asynchronous copies. Products are mma.m16n8k16. Weights never leave registers:
// the sums of the first product have the layout that the second wants of its left operand.
constexpr int QUERIES = 128, ROW_TILES = QUERIES / WARPS / 16;
constexpr int ROW_BYTES = DIM * 2, Q_BYTES = QUERIES * ROW_BYTES, KV_BYTES = KEYS * ROW_BYTES;

// Where 16 bytes of a row lie: chunks are swizzled, so that eight rows of a column hit all banks.
__device__ __forceinline__ u32 chunk_at(u32 tile, int row, int chunk) {
  return tile + row * ROW_BYTES + ((chunk ^ (row & 7)) << 4);
}

__device__ __forceinline__ void copy_16_bytes(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LEFT>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&to)[4], u32 from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

// sums[16, 8] += a[16, 16] b[16, 8]
__device__ __forceinline__ void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Start to copy rows first..first+ROWS-1 of a head; rows past the last token repeat it.
template <int ROWS>
__device__ __forceinline__ void copy_tile(u32 tile, const uint4* matrix, int first, int tokens,
                                          int heads, int head) {
#pragma unroll
  for (int i = 0; i < ROWS * 16 / (WARPS * 32); ++i) {
    const int index = i * (WARPS * 32) + threadIdx.x, row = index / 16, chunk = index % 16;
    const int token = min(first + row, tokens - 1);
    copy_16_bytes(chunk_at(tile, row, chunk), matrix + ((i64)token * heads + head) * 16 + chunk);
  }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    attention_tensor(const uint4* q, const uint4* k, const uint4* v, u32* out, int tokens,
                     int heads, int kv_heads, float scale_log2) {
  extern __shared__ __align__(128) unsigned char memory[];
  wait_for_previous_kernel();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.x, kv_head = head / (heads / kv_heads);
  // The last queries see the most keys: they start first.
  const int first_query = (gridDim.y - 1 - blockIdx.y) * QUERIES;
  const int tiles = (min(first_query + QUERIES, tokens) + KEYS - 1) / KEYS;
  const u32 q_tile = static_cast<u32>(__cvta_generic_to_shared(memory));
  const u32 kv_tiles = q_tile + Q_BYTES;  // stage s: keys at 2 s, values at 2 s + 1

  copy_tile<QUERIES>(q_tile, q, first_query, tokens, heads, head);
  copy_tile<KEYS>(kv_tiles, k, 0, tokens, kv_heads, kv_head);
  copy_tile<KEYS>(kv_tiles + KV_BYTES, v, 0, tokens, kv_heads, kv_head);
  commit_copies();

  float acc[ROW_TILES][DIM / 8][4] = {};
  float top[ROW_TILES][2], total[ROW_TILES][2];
#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
    top[r][0] = top[r][1] = minus_infinity();
    total[r][0] = total[r][1] = 0;
  }
  const int warp_row = warp * 16 * ROW_TILES;
  for (int tile = 0; tile < tiles; ++tile) {
    const u32 keys = kv_tiles + tile % 2 * 2 * KV_BYTES, values = keys + KV_BYTES;
    if (tile + 1 < tiles) {
      const u32 next = kv_tiles + (tile + 1) % 2 * 2 * KV_BYTES;
      copy_tile<KEYS>(next, k, (tile + 1) * KEYS, tokens, kv_heads, kv_head);
      copy_tile<KEYS>(next + KV_BYTES, v, (tile + 1) * KEYS, tokens, kv_heads, kv_head);
    }
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    float logits[ROW_TILES][KEYS / 8][4] = {};
#pragma unroll
    for (int step = 0; step < DIM / 16; ++step) {
      u32 a[ROW_TILES][4];
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        load_matrices(a[r], chunk_at(q_tile, warp_row + 16 * r + lane % 16, 2 * step + lane / 16));
      }
#pragma unroll
      for (int n = 0; n < KEYS / 16; ++n) {
        u32 b[4];
        load_matrices(
            b, chunk_at(keys, 16 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          multiply(logits[r][2 * n], a[r], b[0], b[1]);
          multiply(logits[r][2 * n + 1], a[r], b[2], b[3]);
        }
      }
    }

#pragma unroll
    for (int r = 0; r < ROW_TILES; ++r) {
      const int row = first_query + warp_row + 16 * r + lane / 4;
      const bool masked = tile * KEYS + KEYS - 1 > first_query + warp_row + 16 * r;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float best = top[r][half];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& logit = logits[r][n][2 * half + j];
            const int key = tile * KEYS + 8 * n + lane % 4 * 2 + j;
            if (masked && key > row + 8 * half) logit = minus_infinity();
            best = fmaxf(best, logit);
          }
        }
        best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFF, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFF, best, 2));
        const float shrink = power_of_two((top[r][half] - best) * scale_log2);
        const float offset = best * scale_log2;
        float added = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            float& logit = logits[r][n][2 * half + j];
            logit = power_of_two(logit * scale_log2 - offset);
            added += logit;
          }
        }
        total[r][half] = total[r][half] * shrink + added;  // of this lane's columns
        top[r][half] = best;
#pragma unroll
        for (int n = 0; n < DIM / 8; ++n) {
          acc[r][n][2 * half] *= shrink;
          acc[r][n][2 * half + 1] *= shrink;
        }
      }
    }

#pragma unroll
    for (int step = 0; step < KEYS / 16; ++step) {
      u32 a[ROW_TILES][4];
#pragma unroll
      for (int r = 0; r < ROW_TILES; ++r) {
        const float(&low)[4] = logits[r][2 * step];
        const float(&high)[4] = logits[r][2 * step + 1];
        a[r][0] = narrow_pair(low[0], low[1]);
        a[r][1] = narrow_pair(low[2], low[3]);
        a[r][2] = narrow_pair(high[0], high[1]);
        a[r][3] = narrow_pair(high[2], high[3]);
      }
#pragma unroll
      for (int n = 0; n < DIM / 16; ++n) {
        u32 b[4];
        load_transposed(b, chunk_at(values, 16 * step + lane % 16, 2 * n + lane / 16));
#pragma unroll
        for (int r = 0; r < ROW_TILES; ++r) {
          multiply(acc[r][2 * n], a[r], b[0], b[1]);
          multiply(acc[r][2 * n + 1], a[r], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // nobody reads the tile that the next copies overwrite
  }

#pragma unroll
  for (int r = 0; r < ROW_TILES; ++r) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float all = total[r][half];
      all += __shfl_xor_sync(0xFFFFFFFF, all, 1);
      all += __shfl_xor_sync(0xFFFFFFFF, all, 2);
      const float inverse = 1.0f / all;
      const int query = first_query + warp_row + 16 * r + lane / 4 + 8 * half;
      if (query < tokens) {
        u32* to = out + ((i64)query * heads + head) * (DIM / 2) + lane % 4;
#pragma unroll
        for (int n = 0; n < DIM / 8; ++n) {
          to[4 * n] = narrow_pair(acc[r][n][2 * half] * inverse, acc[r][n][2 * half + 1] * inverse);
        }
      }
    }
  }
}
