"""The terminal user interface: watch a run, go back in time, compare two runs.

Only `workbench tui` loads it, and only it loads Textual.
"""
