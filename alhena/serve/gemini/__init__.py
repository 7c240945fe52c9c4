"""The Gemini API: wire format and HTTP application."""
