"""The SDK's types of Interactions, imported when one is first used: they are many, and no other method needs them."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from google.genai import interactions

    return getattr(interactions, name)
