"""Planning: memory, time and communication of a training run on hardware that is not available."""
