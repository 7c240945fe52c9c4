"""Benchmarks with images, audio and video: how each is read from its public layout, asked, and scored."""
