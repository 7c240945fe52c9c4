"""Trainings of parts of the model: the audio encoder without transcripts, the image tokenizer."""
