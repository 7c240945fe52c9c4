"""embedContent, batchEmbedContents, and Vertex AI's predict for texts.

taskType is accepted and has no effect: the vectors of queries, documents and all else are comparable. A title stands before its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alhena.content import Content, Text
from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.wire.fields import (
    Fields,
    WireError,
    not_offered,
    parse_json,
    path,
    read_flag,
    read_integer,
    read_list,
    read_object,
    read_string,
    refuse,
)
from alhena.serve.gemini.wire.request import read_count_request

MAX_REQUESTS = 1000
TASKS = (
    "TASK_TYPE_UNSPECIFIED", "RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT", "SEMANTIC_SIMILARITY", "CLASSIFICATION", "CLUSTERING",
    "QUESTION_ANSWERING", "FACT_VERIFICATION", "CODE_RETRIEVAL_QUERY",
)  # fmt: skip
OPTIONS = ("taskType", "title", "outputDimensionality", "autoTruncate", "documentOcr", "audioTrackExtraction")
REQUEST = ("model", "content", "embedContentConfig", *OPTIONS)
Vectors = list[list[float]]


def _check_options(calls: Calls, fields: Fields, where: str) -> tuple[str, int]:
    """Title and dimension of a request, 0 where it is not given. Raises WireError."""
    refuse(fields, where, ("documentOcr", "audioTrackExtraction"))
    if read_flag(fields, where, "autoTruncate"):
        raise not_offered(path(where, "autoTruncate"), ": a text that is too long is refused")
    task = read_string(fields.get("taskType", TASKS[0]), path(where, "taskType"), 64)
    if task not in TASKS:
        raise WireError(400, f"{path(where, 'taskType')} is {task!r}; there are {', '.join(TASKS[1:])}")
    title = read_string(fields.get("title", ""), path(where, "title"), 1024)
    dimension = read_integer(fields, where, "outputDimensionality", 0)
    if not 0 <= dimension <= calls.embedder.dimension:
        raise WireError(
            400,
            f"{path(where, 'outputDimensionality')} is {dimension}; this model has {calls.embedder.dimension} at most",
        )
    return title, dimension


def _read_one(calls: Calls, body: Any, where: str, model: str) -> tuple[Content, int]:
    """The content of one request and its dimension. Raises WireError."""
    fields = read_object(body, where, REQUEST)
    named = read_string(fields.get("model", model), path(where, "model"), 256)
    if named.removeprefix("models/") != model:
        raise WireError(400, f"{path(where, 'model')} is {named!r}, but the URL names models/{model}")
    if "embedContentConfig" in fields:
        at = path(where, "embedContentConfig")
        inner = read_object(fields["embedContentConfig"], at, OPTIONS)
        if both := next((name for name in inner if name in fields), None):
            raise WireError(400, f"{path(where, both)} and {path(at, both)} exclude each other")
        fields = {**fields, **inner}
    title, dimension = _check_options(calls, fields, where)
    if "content" not in fields:
        raise WireError(400, f"{path(where, 'content')} is missing")
    content = fields["content"]
    role = {"role": "user"} if isinstance(content, Mapping) else {}
    request = calls.parse({"contents": [{**content, **role} if role else content]}, read_count_request, model)
    parts = tuple(part for turn in request.prompt.contents for part in turn.parts)
    return Content("document", ((Text(title + "\n"),) if title else ()) + parts), dimension


async def _vectors(calls: Calls, contents: list[tuple[Content, int]]) -> tuple[Vectors, list[int]]:
    """The vectors of contents, cut to their dimensions, and the numbers of their tokens."""
    if any(isinstance(part, Text) and not part.text for content, _ in contents for part in content.parts):
        raise WireError(400, "a text is empty: it has no embedding")
    try:
        examples = [await calls.on_parser(calls.embedder.encode, content) for content, _ in contents]
    except ValueError as error:
        raise WireError(400, str(error)) from None
    dimensions = [dimension for _, dimension in contents]
    return await calls.embedder(examples, dimensions), [len(example.tokens) for example in examples]


async def embed(calls: Calls, bodies: list[Any], model: str) -> tuple[Vectors, list[int]]:
    """Vectors and token counts of the bodies of embedContent requests. Raises WireError."""
    contents = [await calls.on_parser(_read_one, calls, body, f"requests[{i}]", model) for i, body in enumerate(bodies)]
    return await _vectors(calls, contents)


async def respond(calls: Calls, body: bytearray | Mapping[str, Any], model: str) -> dict[str, Any]:
    """The response of embedContent. Raises WireError."""
    value = parse_json(body) if isinstance(body, bytearray) else body
    content = await calls.on_parser(_read_one, calls, value, "", model)
    vectors, counts = await _vectors(calls, [content])
    return {"embedding": {"values": vectors[0]}, "usageMetadata": {"promptTokenCount": counts[0]}}


async def respond_batch(calls: Calls, body: bytearray, model: str) -> dict[str, Any]:
    """The response of batchEmbedContents. Raises WireError."""
    fields = read_object(parse_json(body), "", ("requests", "model"))
    requests = read_list(fields.get("requests", []), "requests", MAX_REQUESTS)
    if not requests:
        raise WireError(400, "requests is missing: it must hold at least one request")
    vectors, counts = await embed(calls, list(requests), model)
    return {
        "embeddings": [{"values": values} for values in vectors],
        "usageMetadata": {"promptTokenCount": sum(counts)},
    }


async def predict(calls: Calls, body: bytearray, model: str) -> dict[str, Any]:
    """The response of Vertex AI's predict for instances that are texts. Raises WireError."""
    fields = read_object(parse_json(body), "", ("instances", "parameters"))
    parameters = read_object(fields.get("parameters", {}), "parameters", ("outputDimensionality", "autoTruncate"))
    bodies = []
    for i, item in enumerate(read_list(fields.get("instances", []), "instances", MAX_REQUESTS)):
        where = f"instances[{i}]"
        if isinstance(item, Mapping) and "prompt" in item:
            raise not_offered(f"{where}.prompt", ": predict embeds texts here; generateContent generates images")
        instance = read_object(item, where, ("content", "taskType", "title", "mimeType"))
        refuse(instance, where, ("mimeType",))
        text = read_string(instance.get("content", ""), f"{where}.content", 1 << 20)
        options = {name: instance[name] for name in ("taskType", "title") if name in instance}
        bodies.append({"content": {"parts": [{"text": text}]}, **options, **parameters})
    if not bodies:
        raise WireError(400, "instances is missing: it must hold at least one")
    vectors, counts = await embed(calls, bodies, model)
    return {
        "predictions": [
            {"embeddings": {"values": values, "statistics": {"token_count": count, "truncated": False}}}
            for values, count in zip(vectors, counts, strict=True)
        ]
    }
