"""How far simulations are from the engine: `measure` needs the engine, `judge` only its files.

loads -> suite (the very loads, kept) -> measure -> cells (files) -> judge -> table, picture
"""
