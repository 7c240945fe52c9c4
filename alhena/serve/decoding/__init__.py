"""Decoding: prompts read into a paged cache, all sequences advanced together, tokens sampled under constraints, and made into parts again."""
