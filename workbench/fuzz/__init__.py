"""Deterministic, seed-driven fault testing of scheduler, prefix cache, router and simulator."""
