"""What `workbench init` writes: a scenario with every key, its default and what it means."""

from __future__ import annotations

from typing import Final

_TEMPLATE: Final = """\
# A scenario: everything that determines a run. Run it with `workbench simulate THIS_FILE`.
# Only the keys without "default" are needed. To change one for a run: --set load.request_rate=20
schema: workbench/scenario/v1
name: {name}                # names the folder of the results
description: ""             # default: empty
seed: 0                     # default: 0; the same seed gives the same run, byte for byte

model:
  name: Llama-3.1-8B        # a shipped card; or `path:` of a Hugging Face config.json
  # weight_dtype: fp8       # bf16 | fp16 | fp32 | fp8 | int8; default: as the checkpoint
  # kv_dtype: fp8           # the same; default: as the model's activations

hardware:
  gpu: h200                 # a100 | h100 | h200 | b200 | l4 | rtx4090
  memory_fraction: 0.9      # default: 0.9 of the memory for weights, work space and KV cache
  # profile: analytic       # or what `workbench calibrate` wrote: profiles/NAME.json; default: the
                            # shipped profile that fits, else analytic

# What is asked. A length is a number of tokens, short for {{kind: fixed, value: 100}}, or one of
#   {{kind: uniform, min: 1, max: 100}}    {{kind: zipf, alpha: 1.1, min: 1, max: 1000}}
#   {{kind: lognormal, mean: 100, std_dev: 50, min: 1, max: 1000}}
#   {{kind: recorded, model: demo-dense}}: as long as texts that this model really wrote
workload:
  kind: synthetic           # synthetic | shared_prefix | conversation | trace
  num_requests: 1000        # default: 1000
  prompt_len: {{kind: lognormal, mean: 600, std_dev: 400, max: 4096}}
  output_len: {{kind: lognormal, mean: 200, std_dev: 150, max: 1024}}
  max_tokens: output_len    # default: the client asks for exactly the output; or a number
  high_priority_fraction: 0 # default: 0; share that `scheduler.policy: priority` favours
  num_tenants: 1            # default: 1; tenants never share cached prefixes
# workload:                 # groups of requests that share a system prompt
#   kind: shared_prefix
#   num_requests: 1000
#   num_groups: 16          # default: 16
#   system_prompt_len: 1000
#   question_len: 100
#   output_len: 200
#   group_skew: 0           # default: 0, all groups alike; 1: popularity falls as 1/rank
# workload:                 # conversations: each turn extends the last
#   kind: conversation
#   num_conversations: 200  # default: 200
#   turns: 4                # default: 4
#   system_prompt_len: 0    # default: 0; shared by all
#   first_prompt_len: 500   # default: as user_len
#   user_len: 100
#   output_len: 200
#   think_time_s: 5         # default: 5; or {{kind: lognormal, mean: 5, std_dev: 5, max: 60}}
# workload:                 # a recorded trace; `load: {{kind: trace}}` keeps its timestamps
#   kind: trace
#   path: trace.jsonl       # seen from this file's folder
#   format: auto            # default: auto; mooncake | azure | burstgpt
#   block_size: 512         # default: 512; tokens per hash_id of a mooncake trace
#   limit: 1000             # default: all rows

# When it is asked. Every kind also takes the keys below.
load:
  kind: poisson             # or gamma (request_rate, burstiness), constant (request_rate),
                            # all_at_once, ramp (start_request_rate, end_request_rate),
                            # closed_loop (max_concurrency), trace (time_scale)
  request_rate: 10          # requests per second
  # max_concurrency: 256    # default: no limit; most requests of this client in flight
  warmup_requests: 0        # default: 0; the first requests, left out of the metrics
  measure_from_s: 0         # default: 0; earlier arrivals are left out of the metrics
  # measure_until_s: 600    # default: to the end

deployment:                 # default: one replica on one GPU
  router:
    policy: round_robin     # default: round_robin; least_loaded | cache_aware
    imbalance_threshold: 32 # default: 32; cache_aware: requests that a replica may be ahead
  pools:
    - role: mixed           # default: mixed
      replicas: 1           # default: 1
      tensor_parallel_size: 1       # default: 1; GPUs per replica
      expert_parallel_size: 1       # default: 1
      # num_pages: 10000            # default: what the memory holds
      page_size: 16                 # default: 16 tokens
      max_num_batched_tokens: 8192  # default: 8192; token budget of a step
      max_running_requests: 256     # default: 256
      max_plans_in_flight: 2        # default: 2, host and GPU overlap; 1: they take turns
      # cuda_graph_batch_sizes: [1, 2, 4, 8]    # default: up to max_running_requests; []: no graphs

scheduler:
  policy: fcfs              # default: fcfs; lpm (longest cached prefix) | priority
  mode: mixed               # default: mixed; prefill_first
  chunked_prefill: true     # default: true
  # max_prefill_tokens: 2048          # default: the whole budget; the chunk size
  admission: estimate       # default: estimate; reserve
  schedule_conservativeness: 1.0      # default: 1.0; larger admits later, retracts less
  prefix_cache:
    enabled: true           # default: true
    eviction: lru           # default: lru; lfu

# aborts:                   # default: nobody gives up
#   fraction: 0.05
#   after_s: 10             # or a distribution, as think_time_s
too_long: reject            # default: reject requests that can never fit; truncate | error

slo:                        # default: none, no goodput
  ttft_ms: 2000
  tpot_ms: 100
  # e2el_ms: 30000
  # preset: llama3.1-8b-interactive   # limits of a MLPerf benchmark

report:
  percentiles: [50, 90, 95, 99, 99.9] # the default

# Not supported yet: `speculative`, `faults`, pool roles prefill and decode, `expert_parallel_size`
# above 1
"""


def scenario_template(name: str = "my_scenario") -> str:
    """The text of a scenario file with every key; `name` must be fit for `Scenario.name`."""
    return _TEMPLATE.format(name=name)
