"""Benchmarks by family: how each is read from its public layout, asked, and scored."""
