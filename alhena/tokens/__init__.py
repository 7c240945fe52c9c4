"""Tokenize: Documents become packed Batches of tokens, image patches and audio frames."""
