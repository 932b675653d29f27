"""`workbench calibrate`: steps, kernels and exchange measured on a GPU, written as profiles."""
