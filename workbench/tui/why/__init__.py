"""The screen that says of a whole run where time went, why requests waited, and what would help."""
