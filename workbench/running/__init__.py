"""A scenario resolved and run, simulated or on the engine; forks and replays of records."""
