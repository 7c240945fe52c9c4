"""Encoders of open weights: configurations and tables of tensor names, in and out."""
