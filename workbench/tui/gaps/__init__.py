"""The gaps screen: before and after CUDA Graphs, side by side."""
