"""What is asked and when it arrives: drawn from a scenario or read from a recorded trace."""
