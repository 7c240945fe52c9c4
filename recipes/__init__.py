"""Recipes: a run is a Python function that returns a frozen dataclass."""
