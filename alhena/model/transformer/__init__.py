"""The decoder: its embedding table, the kinds of its layers, and its layers as stacks of weights."""
