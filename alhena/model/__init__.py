"""Model: a Batch becomes logits. Plain functions on pytrees of frozen dataclasses; no stage is imported here."""
