"""Encoded examples: made from documents, stored, packed into batches."""
