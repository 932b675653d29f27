"""The screen of requests: filter and sort them, and see where the time of each went."""
