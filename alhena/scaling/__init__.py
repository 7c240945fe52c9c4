"""Scaling laws: fitted to a ladder of small models, and what they suggest for large ones."""
