"""Open weights: configurations and tensor names of public model families, in and out."""
