"""Corpus: raw files become clean, deduplicated, decontaminated Documents. No model is known here."""
