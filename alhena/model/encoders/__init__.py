"""Encoders: from image patches and audio frames to vectors of the decoder's width."""
