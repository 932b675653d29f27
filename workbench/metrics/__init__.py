"""From a run's tables to numbers: latencies, throughput, occupancy, and the summary of it all."""
