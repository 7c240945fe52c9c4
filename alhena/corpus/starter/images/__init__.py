"""Sources of images with questions and answers of the starter corpus."""
