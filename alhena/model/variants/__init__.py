"""What some open weights add to a decoder layer: experts, per-layer inputs, AltUp."""
