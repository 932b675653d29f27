"""Measuring the engine: which steps, made up as plans, and what they take. No torch in here."""
