"""Sans-IO decisions of an LLM serving engine: requests, pages, prefix cache, scheduler, events.

The core does no I/O and owns no clock, thread or random source. A driver (the engine's serving
loop, or the simulator) calls it with the time and carries out what it decides.
"""
