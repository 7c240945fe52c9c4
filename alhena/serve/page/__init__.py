"""The page at ``/``: a chat in the browser over the Gemini API of the same server. Static files, no build step."""
