"""Structured answers: JSON of a schema and calls of functions, enforced token by token."""
