// Attention of one new token per request over its paged KV cache, bfloat16, heads of 128.
//
// q [batch, heads, 128], k and v [pages, page_size, kv_heads, 128], table [batch, max_pages],
// contexts [batch], out as q. Every kernel first waits for the one before it, because the launcher
// lets it start early. The including text (see attention_decode.py) defines GROUP, the query heads
// that share a KV head, at most 8.

constexpr int DIM = 128;

// Rung "cuda-naive": a warp does a query head of a request, four dimensions a lane, one token at a
// time. Heads that share a KV head each read it, and a long context has one warp per head.
extern "C" __global__ void decode_naive(const uint2* q, const uint2* k, const uint2* v,
                                        const int* table, const int* contexts, uint2* out,
                                        int kv_heads, int page_size, int max_pages,
                                        float scale_log2) {
  wait_for_previous_kernel();
  const int lane = threadIdx.x, head = blockIdx.x, heads = gridDim.x, request = blockIdx.y;
  const int kv_head = head / (heads / kv_heads), context = contexts[request];
  const i64 at = ((i64)request * heads + head) * 32 + lane;
  const uint2 mine = q[at];
  const float q0 = wide(mine.x), q1 = wide_high(mine.x), q2 = wide(mine.y), q3 = wide_high(mine.y);
  float top = minus_infinity(), total = 0, o0 = 0, o1 = 0, o2 = 0, o3 = 0;
  for (int token = 0; token < context; ++token) {
    const i64 page = table[request * max_pages + token / page_size];
    const i64 from = ((page * page_size + token % page_size) * kv_heads + kv_head) * 32 + lane;
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

// Rung "cuda-tensor": flash decoding (Dao et al., 2023). A block does all query heads of one KV
// head for one split of a request's context, so KV is read once and every multiprocessor has work.
// Its four warps take tiles of 16 tokens in turn, each with copies of three tiles in flight, wait
// for nobody, and meet at the end. The query heads are the rows of mma.m16n8k16; rows past GROUP
// are zero.
constexpr int TILE = 16, STAGES = 3, WARPS = 4, ROW_BYTES = DIM * 2;
constexpr int TILE_BYTES = TILE * ROW_BYTES, WARP_BYTES = STAGES * 2 * TILE_BYTES;

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

// sums[16, 8] += a[16, 16] b[16, 8], where rows 8 to 15 of a are zero.
__device__ __forceinline__ void multiply(float (&sums)[4], u32 a0, u32 a2, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1));
}

// The part of a context that a split covers, in whole tiles.
struct Piece {
  int begin, end;
};

__device__ __forceinline__ Piece piece_of(int context, int split, int splits) {
  const int tiles = (context + TILE - 1) / TILE, each = (tiles + splits - 1) / splits;
  return {split * each * TILE, min((split + 1) * each * TILE, context)};
}

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    decode_tensor(const u32* q, const uint4* k, const uint4* v, const int* table,
                  const int* contexts, float* partial, float* log_sums, int splits,
                  int kv_heads, int page_size, int max_pages, float scale_log2) {
  extern __shared__ __align__(128) unsigned char memory[];
  wait_for_previous_kernel();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int head = blockIdx.x, split = blockIdx.y % splits, request = blockIdx.y / splits;
  const Piece piece = piece_of(contexts[request], split, splits);
  const i64 slot = (((i64)request * kv_heads + head) * splits + split) * GROUP;
  if (piece.begin >= piece.end) {
    if (threadIdx.x < GROUP) log_sums[slot + threadIdx.x] = minus_infinity();
    return;
  }
  const u32 mine = static_cast<u32>(__cvta_generic_to_shared(memory)) + warp * WARP_BYTES;
  const int* pages = table + (i64)request * max_pages;

  auto row_of = [&](int tile) {  // of the caches, for token lane % 16 of this warp's tile
    const int first = piece.begin + (tile * WARPS + warp) * TILE;
    const int token = min(first + lane % TILE, piece.end - 1);
    return pages[token / page_size] * page_size + token % page_size;
  };
  auto copy = [&](int tile, int row) {
    const u32 keys = mine + tile % STAGES * 2 * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < TILE / 2; ++i) {
      const int of_tile = 2 * i + lane / 16, chunk = lane % 16;
      const i64 from = ((i64)__shfl_sync(0xFFFFFFFF, row, of_tile) * kv_heads + head) * 16 + chunk;
      copy_16_bytes(chunk_at(keys, of_tile, chunk), k + from);
      copy_16_bytes(chunk_at(keys + TILE_BYTES, of_tile, chunk), v + from);
    }
  };

  const int all_tiles = (piece.end - piece.begin + TILE - 1) / TILE;
  const int tiles = (all_tiles - warp + WARPS - 1) / WARPS;  // of this warp, none if negative
  for (int tile = 0; tile < STAGES - 1; ++tile) {
    if (tile < tiles) copy(tile, row_of(tile));
    commit_copies();
  }
  int next_row = row_of(STAGES - 1);

  u32 query[DIM / 16][2];
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = 8 * step + 4 * half + lane % 4;
      const bool real = lane / 4 < GROUP;
      const i64 row = ((i64)request * kv_heads + head) * GROUP + lane / 4;
      query[step][half] = real ? q[row * (DIM / 2) + at] : 0;
    }
  }

  float top = minus_infinity(), total = 0, acc[DIM / 8][4] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + STAGES - 1 < tiles) copy(tile + STAGES - 1, next_row);
    next_row = row_of(tile + STAGES);
    commit_copies();
    wait_for_copies<STAGES - 1>();
    __syncwarp();
    const u32 keys = mine + tile % STAGES * 2 * TILE_BYTES, values = keys + TILE_BYTES;
    float logits[2][4] = {};
#pragma unroll
    for (int step = 0; step < DIM / 16; ++step) {
      u32 b[4];
      load_matrices(b, chunk_at(keys, lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
      multiply(logits[0], query[step][0], query[step][1], b[0], b[1]);
      multiply(logits[1], query[step][0], query[step][1], b[2], b[3]);
    }
    const int first = piece.begin + (tile * WARPS + warp) * TILE + lane % 4 * 2;
    float best = top;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const bool inside = first + 8 * n + j < piece.end;
        logits[n][j] = inside ? logits[n][j] * scale_log2 : minus_infinity();
        best = fmaxf(best, logits[n][j]);
      }
    }
    best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFF, best, 1));
    best = fmaxf(best, __shfl_xor_sync(0xFFFFFFFF, best, 2));
    const float shrink = power_of_two(top - best);
    float weights[2][2], added = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        weights[n][j] = power_of_two(logits[n][j] - best);
        added += weights[n][j];
      }
    }
    total = total * shrink + added;  // of this lane's columns
    top = best;
    const u32 low = narrow_pair(weights[0][0], weights[0][1]);
    const u32 high = narrow_pair(weights[1][0], weights[1][1]);
#pragma unroll
    for (int n = 0; n < DIM / 16; ++n) {
      u32 b[4];
      load_transposed(b, chunk_at(values, lane % 16, 2 * n + lane / 16));
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        acc[2 * n + side][0] *= shrink;
        acc[2 * n + side][1] *= shrink;
        multiply(acc[2 * n + side], low, high, b[2 * side], b[2 * side + 1]);
      }
    }
    __syncwarp();  // nobody reads the tile that the next copies overwrite
  }
  total += __shfl_xor_sync(0xFFFFFFFF, total, 1);
  total += __shfl_xor_sync(0xFFFFFFFF, total, 2);

  // The warps meet. What they wrote takes the place of their tiles.
  wait_for_copies<0>();
  __syncthreads();
  float* sums = reinterpret_cast<float*>(memory);        // [WARPS][GROUP][DIM]
  float* tops = sums + WARPS * GROUP * DIM;              // [WARPS][GROUP]
  float* totals = tops + WARPS * GROUP;                  // [WARPS][GROUP]
  const int group = lane / 4;
  if (group < GROUP) {
    if (lane % 4 == 0) {
      tops[warp * GROUP + group] = top;
      totals[warp * GROUP + group] = total;
    }
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
      float* to = sums + (warp * GROUP + group) * DIM + 8 * n + lane % 4 * 2;
      to[0] = acc[n][0];
      to[1] = acc[n][1];
    }
  }
  __syncthreads();
  const int dim = threadIdx.x;
#pragma unroll
  for (int row = 0; row < GROUP; ++row) {
    float best = minus_infinity(), all = 0, value = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) best = fmaxf(best, tops[w * GROUP + row]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float weight = power_of_two(tops[w * GROUP + row] - best);
      all += weight * totals[w * GROUP + row];
      value += weight * sums[(w * GROUP + row) * DIM + dim];
    }
    partial[(slot + row) * DIM + dim] = value / all;
    if (dim == 0) log_sums[slot + row] = best + log2f(all);
  }
}

// The second kernel of the rung: weighs the splits of a query head by their sums.
extern "C" __global__ void __launch_bounds__(DIM)
    decode_combine(const float* partial, const float* log_sums, u16* out, int splits) {
  wait_for_previous_kernel();
  const i64 pair = (i64)blockIdx.y * gridDim.x + blockIdx.x;  // request and query head
  const i64 first = pair / GROUP * splits * GROUP + pair % GROUP;
  float best = minus_infinity(), all = 0, value = 0;
  for (int i = 0; i < splits; ++i) best = fmaxf(best, log_sums[first + i * GROUP]);
  for (int i = 0; i < splits; ++i) {
    const float log_sum = log_sums[first + i * GROUP];
    if (log_sum > minus_infinity()) {  // where there is nothing, nothing was written
      const float weight = power_of_two(log_sum - best);
      all += weight;
      value += weight * partial[(first + i * GROUP) * DIM + threadIdx.x];
    }
  }
  out[pair * DIM + threadIdx.x] = narrow(value / all);
}
