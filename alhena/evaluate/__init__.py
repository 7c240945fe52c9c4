"""Evaluation: models answer a test split; metrics, chance levels and intervals become a report."""
