"""Generation of answers from a model folder: engine, scheduler, terminal chat, and the Gemini API."""
