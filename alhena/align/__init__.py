"""Alignment: a base model becomes an assistant."""
