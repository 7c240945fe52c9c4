"""Sources of text of the starter corpus."""
