"""Compress: the assistant becomes Nano, with 4-bit weights."""
