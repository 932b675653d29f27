"""The terminal user interface: watch a run, go back in time, compare. Only `workbench tui` loads it."""
