"""Sources of video clips of the starter corpus."""
