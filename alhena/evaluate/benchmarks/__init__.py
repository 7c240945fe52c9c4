"""Benchmarks: how a model is asked, where its programs run, and what a corpus held of the items."""
