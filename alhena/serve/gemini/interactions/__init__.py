"""The Interactions API."""
