"""C++ and CUDA for the engine, built when first wanted: two torch ops, and the prefix cache.

`ops` registers `torch.ops.workbench.add_rms_norm_` and `.silu_mul`; `prefix_cache` is the radix
tree that a driver may put into a scheduler. Without a compiler the ops run as Python and the
scheduler keeps its own tree. `engine.core` knows nothing of this package.
"""
