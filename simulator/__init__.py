"""A discrete-event simulator that drives the engine's own scheduler in virtual time."""
