"""Gemma 4's tokenizer from Gemma 3's: some unused rows have other names."""

from __future__ import annotations

import json

# Names of Gemma 4's control tokens by their ids.
GEMMA4_NAMES = {
    46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>',
    98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>",
}  # fmt: skip


def renamed(tokenizer: str) -> str:
    """Gemma 3's tokenizer.json with Gemma 4's names."""
    stored = json.loads(tokenizer)
    vocabulary, added = stored["model"]["vocab"], stored["added_tokens"]
    names = {name: token for name, token in vocabulary.items() if token in GEMMA4_NAMES}
    for name, token in names.items():
        del vocabulary[name]
        vocabulary[GEMMA4_NAMES[token]] = token
    for token in added:
        token["content"] = GEMMA4_NAMES.get(token["id"], token["content"])
    return json.dumps(stored)
