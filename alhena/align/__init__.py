"""Align: a base model becomes an assistant."""
