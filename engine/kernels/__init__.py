"""The GPU kernels of the engine: one op per file, with a torch reference and a Triton kernel.

`registry.select_kernels` picks an implementation of each op by device.
"""
