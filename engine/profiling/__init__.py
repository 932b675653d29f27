"""Measuring the engine: which steps and kernels, and what they take.

Only `kernel_bench`, `kernel_timing` and `kernel_device` import torch.
"""
