"""What an operator sees of a server: health, logs, metrics."""
