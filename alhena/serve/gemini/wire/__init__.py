"""The wire format of the Gemini API: requests to Content and settings, answers to responses."""
