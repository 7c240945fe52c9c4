"""Quantized weights, and the kernels that multiply by them."""
