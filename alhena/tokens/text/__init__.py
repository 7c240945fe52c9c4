"""Text tokenizers, and streams of text tokens."""
