"""Evaluate: answers become a report card."""
