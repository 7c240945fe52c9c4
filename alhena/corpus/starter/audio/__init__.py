"""Sources of speech of the starter corpus."""
