"""tools and toolConfig of a request: the functions that the model may or must call. An unsupported tool is refused by name."""

from __future__ import annotations

from typing import Any

from alhena.content import Tool
from alhena.serve.decoding.sampling.sampler import OutputFormat
from alhena.serve.gemini.wire.fields import (
    Fields,
    WireError,
    not_offered,
    path,
    read_list,
    read_object,
    read_string,
    refuse,
)
from alhena.serve.gemini.wire.parts import read_name

MAX_TOOLS, MAX_FUNCTIONS, MAX_DESCRIPTION = 16, 256, 1 << 16
TOOLS_NOT_OFFERED = (
    "googleSearch", "googleSearchRetrieval", "codeExecution", "urlContext", "retrieval", "googleMaps", "computerUse",
    "enterpriseWebSearch", "fileSearch", "mcpServers", "parallelAiSearch", "exaAiSearch",
)  # fmt: skip
DECLARATION = ("name", "description", "parameters", "parametersJsonSchema")
# Schemas of what a function returns: the SDK sends them for Python functions; prompt formats have no place for them.
RESPONSE = ("response", "responseJsonSchema")
DECLARATION_NOT_OFFERED = ("behavior",)
MODES = ("AUTO", "ANY", "NONE", "VALIDATED", "MODE_UNSPECIFIED")


def _declaration(value: Any, where: str) -> Tool:
    fields = read_object(value, where, (*DECLARATION, *RESPONSE, *DECLARATION_NOT_OFFERED))
    refuse(fields, where, DECLARATION_NOT_OFFERED)
    if "parameters" in fields and "parametersJsonSchema" in fields:
        raise WireError(400, f"{where}: parameters and parametersJsonSchema exclude each other")
    name = next((n for n in DECLARATION[2:] if n in fields), "parameters")
    for schema in (name, *RESPONSE):
        if not isinstance(fields.get(schema, {}), dict):
            raise WireError(400, f"{path(where, schema)} must be an object")
    description = read_string(fields.get("description", ""), f"{where}.description", MAX_DESCRIPTION)
    return Tool(read_name(fields.get("name", ""), f"{where}.name"), description, fields.get(name, {}))


def _declared(request: Fields) -> tuple[Tool, ...]:
    declared: list[Tool] = []
    for i, item in enumerate(read_list(request.get("tools", []), "tools", MAX_TOOLS)):
        where = f"tools[{i}]"
        tool = read_object(item, where, ("functionDeclarations", *TOOLS_NOT_OFFERED))
        for name in TOOLS_NOT_OFFERED:
            if name in tool:
                raise not_offered(path(where, name))
        where = f"{where}.functionDeclarations"
        functions = read_list(tool.get("functionDeclarations", []), where, MAX_FUNCTIONS)
        declared += [_declaration(function, f"{where}[{j}]") for j, function in enumerate(functions)]
    names = [tool.name for tool in declared]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise WireError(400, f"tools declare the function {duplicate!r} twice")
    return tuple(declared)


def read_tools(request: Fields) -> tuple[tuple[Tool, ...], OutputFormat | None]:
    """The functions that the model may call, and which of them it must call; None: it decides. Raises WireError."""
    declared, where = _declared(request), "toolConfig.functionCallingConfig"
    config = read_object(
        request.get("toolConfig", {}),
        "toolConfig",
        ("functionCallingConfig", "retrievalConfig", "includeServerSideToolInvocations"),
    )
    refuse(config, "toolConfig", ("retrievalConfig", "includeServerSideToolInvocations"))
    known = ("mode", "allowedFunctionNames", "streamFunctionCallArguments")
    calling = read_object(config.get("functionCallingConfig", {}), where, known)
    refuse(calling, where, ("streamFunctionCallArguments",))
    mode = read_string(calling.get("mode", "AUTO"), f"{where}.mode", 64).upper()
    if mode not in MODES:
        raise WireError(400, f"{where}.mode is {mode!r}; it must be {', '.join(MODES)}")
    allowed = _allowed(calling, mode, [tool.name for tool in declared])
    if mode == "NONE":
        return (), None
    if mode not in ("ANY", "VALIDATED"):
        return declared, None
    if not declared:
        raise WireError(400, f"{where}.mode is {mode}, but tools declare no function")
    return declared, OutputFormat(calls=allowed, text_allowed=mode == "VALIDATED")


def _allowed(calling: Fields, mode: str, declared: list[str]) -> tuple[str, ...]:
    """The names of the functions that may be called: all, or those of allowedFunctionNames."""
    where = "toolConfig.functionCallingConfig.allowedFunctionNames"
    names = read_list(calling.get("allowedFunctionNames", []), where, MAX_FUNCTIONS)
    allowed = tuple(dict.fromkeys(read_name(name, f"{where}[{i}]") for i, name in enumerate(names)))
    if allowed and mode not in ("ANY", "VALIDATED"):
        raise WireError(400, f"{where} needs the mode ANY or VALIDATED")
    if unknown := next((name for name in allowed if name not in declared), None):
        raise WireError(400, f"{where} has {unknown!r}, which tools do not declare")
    return allowed or tuple(declared)
