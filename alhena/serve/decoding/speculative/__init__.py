"""Speculative decoding: a draft proposes tokens, the model reads them in one step and keeps those that it would have chosen."""
