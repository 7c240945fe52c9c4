"""Files of weights: safetensors, and model folders."""
