"""Planning: memory, time and traffic of a training on hardware that is not at hand."""
