"""The OpenAI-compatible API: requests become those of the Gemini API, and its responses become OpenAI's."""
