"""The next token: which may be sampled, how one is, and how tokens become parts of an answer."""
