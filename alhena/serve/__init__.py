"""Serve: weights become answers, in the terminal and behind the Gemini API."""
