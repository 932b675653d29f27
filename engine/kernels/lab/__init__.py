"""The kernel lab: classic kernels as ladders from naive to best, checked and measured.

`rungs` says in words what each rung changes and needs no torch; the other modules hold the code of
one op each. Nothing here serves requests: where a rung is the engine's own kernel, it is imported
from where it serves.
"""
