"""Encoders: image patches and audio frames become vectors of the decoder's width."""
