"""The engine: real serving on GPUs, and `engine.core`, the scheduler it shares with the simulator.

Importing this package never imports torch.
"""

from engine.compiled import activate

activate()
