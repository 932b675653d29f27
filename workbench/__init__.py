"""What a person types and sees: command line, scenarios, workloads, run records, reports."""
