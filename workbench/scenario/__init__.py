"""The scenario file: its schema, its reading with overrides, and what to say when it is wrong."""
