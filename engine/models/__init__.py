"""Decoder models: configuration, weights, and the one transformer that is assembled from them."""
