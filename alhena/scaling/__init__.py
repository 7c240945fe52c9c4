"""Scaling laws: fitted to a ladder of small models, and the sizes they predict for large ones."""
