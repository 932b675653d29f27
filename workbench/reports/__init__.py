"""A run as pictures and as a trace for Perfetto."""
