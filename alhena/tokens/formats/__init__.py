"""Prompt formats: conversations and tools to tokens, and tokens of an answer to parts."""
