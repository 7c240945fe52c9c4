"""POST /v1/embeddings, also under /v1beta/openai: texts to unit vectors, as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import base64
import struct
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from alhena.serve.gemini.calls import Calls
from alhena.serve.gemini.embeddings import MAX_REQUESTS, embed
from alhena.serve.gemini.streams import until_disconnect
from alhena.serve.gemini.wire.blobs import MAX_TEXT
from alhena.serve.gemini.wire.fields import WireError, not_offered, parse_json, read_list, read_string
from alhena.serve.gemini.wire.translation import Translation, read_exactly
from alhena.serve.openai.chat import PREFIXES
from alhena.serve.openai.chat_request import read_model
from alhena.serve.openai.errors import Route

# ``user`` changes no vector.
KNOWN = ("model", "input", "dimensions", "encoding_format", "user")


def _texts(value: Any) -> list[str]:
    values = read_list(value, "input", MAX_REQUESTS)
    if not values:
        raise WireError(400, "input must hold at least one text")
    if any(isinstance(item, int | list) for item in values):
        raise not_offered("input as tokens", ": tokenizers differ; send texts")
    return [read_string(item, f"input[{i}]", MAX_TEXT) for i, item in enumerate(values)]


async def _respond(calls: Calls, data: bytearray) -> Response:
    fields = read_exactly(parse_json(data), "", KNOWN)
    model = read_model(fields)
    name, texts = calls.resolve(model), _texts(fields.get("input"))
    format = fields.get("encoding_format", "float")
    if format not in ("float", "base64"):
        raise WireError(400, f"encoding_format is {str(format)[:60]!r}; there are float and base64")
    options = {"outputDimensionality": fields["dimensions"]} if "dimensions" in fields else {}
    paths = {f"requests[{i}]": f"input[{i}]" for i in range(len(texts))}
    paths |= {f"requests[{i}].outputDimensionality": "dimensions" for i in range(len(texts))}
    try:
        vectors, counts = await embed(calls, [{"content": text, **options} for text in texts], name)
    except WireError as error:
        raise WireError(error.code, Translation(paths=paths).relocate(error.message), error.status) from None
    rows = [
        {"object": "embedding", "index": i, "embedding": vector if format == "float" else _base64(vector)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return JSONResponse({"object": "list", "data": rows, "model": model, "usage": usage})


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def router(calls: Calls) -> APIRouter:
    """The routes of embeddings."""
    routes = APIRouter(route_class=Route)
    for prefix in PREFIXES:

        @routes.post(f"{prefix}/embeddings", response_model=None)
        async def embeddings(request: Request) -> Response:
            data = await calls.bodies.read(request)
            return await until_disconnect(request, _respond(calls, data))

    return routes
