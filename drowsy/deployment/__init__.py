"""A converted network at full speed: one graph of kernels."""
