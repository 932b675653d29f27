"""The live screen: what the scheduler does, step by step, while it runs or afterwards."""
