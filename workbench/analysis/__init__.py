"""Arithmetic behind `explain` and `compare`: numpy over the tables of a run, no files."""
