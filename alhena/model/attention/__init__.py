"""Attention over complete sequences, and over a key-value cache."""
