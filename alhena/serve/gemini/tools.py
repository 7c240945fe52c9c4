"""tools and toolConfig of a request: the functions that the model may call. An unsupported tool is refused by name."""

from __future__ import annotations

from typing import Any

from alhena.content import Tool
from alhena.serve.gemini.fields import Fields, WireError, not_offered, path, read_list, read_object, read_string, refuse
from alhena.serve.gemini.parts import read_name

MAX_TOOLS, MAX_FUNCTIONS, MAX_DESCRIPTION = 16, 256, 1 << 16
TOOLS_NOT_OFFERED = (
    "googleSearch", "googleSearchRetrieval", "codeExecution", "urlContext", "retrieval", "googleMaps", "computerUse",
    "enterpriseWebSearch", "fileSearch", "mcpServers", "parallelAiSearch",
)  # fmt: skip
DECLARATION = ("name", "description", "parameters", "parametersJsonSchema")
# Schemas of what a function returns: the SDK sends them for Python functions; prompt formats have no place for them.
RESPONSE = ("response", "responseJsonSchema")
DECLARATION_NOT_OFFERED = ("behavior",)


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


def _calls_allowed(request: Fields) -> bool:
    """Whether the model may call functions, by toolConfig."""
    where = "toolConfig.functionCallingConfig"
    config = read_object(
        request.get("toolConfig", {}),
        "toolConfig",
        ("functionCallingConfig", "retrievalConfig", "includeServerSideToolInvocations"),
    )
    refuse(config, "toolConfig", ("retrievalConfig", "includeServerSideToolInvocations"))
    known = ("mode", "allowedFunctionNames", "streamFunctionCallArguments")
    calling = read_object(config.get("functionCallingConfig", {}), where, known)
    refuse(calling, where, known[1:])
    mode = read_string(calling.get("mode", "AUTO"), f"{where}.mode", 64).upper()
    if mode not in ("AUTO", "NONE", "MODE_UNSPECIFIED"):
        raise not_offered(f"{where}.mode", f" as {mode}: calls are not enforced; it must be AUTO or NONE")
    return mode != "NONE"


def read_tools(request: Fields) -> tuple[Tool, ...]:
    """The functions that the model may call. Raises WireError."""
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
    return tuple(declared) if _calls_allowed(request) else ()
