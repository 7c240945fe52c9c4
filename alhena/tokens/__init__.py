"""Tokenization: Documents to packed Batches of tokens, image patches and audio frames."""
