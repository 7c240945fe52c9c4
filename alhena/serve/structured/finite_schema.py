"""Whether a schema has a finite document: a schema that requires itself has none, and an answer would never end."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any


def check_finite(schema: Mapping[str, Any], definitions: Mapping[str, Any], where: str) -> None:
    """Raises ValueError when every document of a schema would contain itself without end."""
    finite: set[str] = set()
    while found := {name for name, value in definitions.items() if name not in finite and _is_finite(value, finite)}:
        finite |= found
    if not _is_finite(schema, finite):
        raise ValueError(f"{where} has no finite document: it requires itself without an end")


def _is_finite(schema: Any, finite: Set[str]) -> bool:
    """Whether a schema has a finite document, by the definitions that are known to have one."""
    if schema is False or "enum" in schema:
        return True
    if "$ref" in schema:
        return schema["$ref"].removeprefix("#/$defs/") in finite
    if not all(
        any(_is_finite(branch, finite) for branch in schema[name]) for name in ("anyOf", "oneOf") if name in schema
    ):
        return False
    if not all(_is_finite(branch, finite) for branch in schema.get("allOf", ())):
        return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return not kinds or any(_is_finite_as(kind, schema, finite) for kind in kinds)


def _is_finite_as(kind: str, schema: Mapping[str, Any], finite: Set[str]) -> bool:
    """The same for the documents of one type."""
    if kind == "object":
        properties = schema.get("properties", {})
        return all(_is_finite(properties.get(name, {}), finite) for name in schema.get("required", ()))
    if kind == "array":
        count, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        items = [*first[:count], *([schema.get("items", {})] if count > len(first) else [])]
        return all(_is_finite(item, finite) for item in items)
    return True
