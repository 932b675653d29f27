"""Steps of models that were never measured, composed of measured kernels."""
