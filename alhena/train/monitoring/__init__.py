"""What is measured of a training, compared between trainings, and repeated to find corruption."""
