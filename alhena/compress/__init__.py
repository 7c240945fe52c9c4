"""Compression of models: 4-bit weights."""
