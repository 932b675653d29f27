"""Measuring the engine: which steps and kernels, what they take, and where that time goes.

Files that need torch say so in their first line; `kernel_bench`, `kernel_timing` and
`kernel_device` need it, too.
"""
