"""The OpenAPI 3.1 description of endpoints. Each operation and each model's mark is in ``x-mark``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from relay import __version__
from relay.emulator.http.endpoints import JSON, Endpoint
from relay.emulator.http.errors import ErrorAnswer
from relay.emulator.marks import Mark

_Use = tuple[type[BaseModel], Literal["validation", "serialization"]]
_References = Mapping[Any, dict[str, Any]]

_REF = "#/components/schemas/{model}"
# What the frame itself may answer, whatever the endpoint.
_ALWAYS = {
    404: "There is no such path on this host.",
    405: "The path has other methods.",
    500: "A fault of ours.",
    503: "The database does not answer: Retry-After says when to ask again.",
    507: "The emulator's disk is full.",
}
_WITH_BODY = {
    400: "The body is not JSON, or a header cannot be read.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body has another type.",
}
_WITH_FIELDS = {422: "Fields are missing or wrong."}
_WITH_SECURITY = {401: "It is not proved who asks.", 403: "Who asks may not do this."}


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole description, as JSON's values."""
    references, definitions = models_json_schema(_models(endpoints), ref_template=_REF, schema_generator=_MarkedSchema)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "An emulation of the Cloud9 cloud",
            "version": __version__,
            "description": "x-mark says where each part comes from. "
            + " ".join(f"{mark}: {mark.sentence}" for mark in Mark),
        },
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {
                each.security.name: dict(each.security.scheme) for each in endpoints if each.security is not None
            },
        },
    }


class _MarkedSchema(GenerateJsonSchema):
    """Writes each class's ``mark`` into its schema. What has none is our own."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return {**super().model_schema(schema), "x-mark": _mark_of(schema["cls"])}

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        return {**super().enum_schema(schema), "x-mark": _mark_of(schema["cls"])}


def _mark_of(cls: type) -> str:
    return str(getattr(cls, "mark", Mark.INVENTED))


def _models(endpoints: Sequence[Endpoint]) -> list[_Use]:
    found: dict[_Use, None] = {(ErrorAnswer, "serialization"): None}
    for each in endpoints:
        found |= {(model, "validation"): None for model in (each.body,) if model is not None}
        found |= {(model, "serialization"): None for model in (each.answer,) if model is not None}
    return list(found)


def _operation(endpoint: Endpoint, references: _References) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{endpoint.path}".replace("/", "_").replace("{", "").replace("}", ""),
        "summary": endpoint.summary,
        "tags": [endpoint.role.value],
        "x-mark": endpoint.mark.value,
        "responses": _responses(endpoint, references),
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    headers = [{"name": name, "in": "header", **each} for name, each in endpoint.reads_headers.items()]
    parameters = [*_parameters(endpoint.path_model, "path"), *_parameters(endpoint.query, "query"), *headers]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body is not None:
        content = {JSON: {"schema": references[endpoint.body, "validation"]}}
        operation["requestBody"] = {"required": True, "content": content}
    elif endpoint.body_types:
        binary = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": True, "content": dict.fromkeys(endpoint.body_types, binary)}
    if endpoint.security is not None:
        operation["security"] = [{endpoint.security.name: []}]
    return operation


def _parameters(model: type[BaseModel] | None, place: str) -> list[dict[str, Any]]:
    """Each field of a flat model is a parameter."""
    if model is None:
        return []
    schema = model.model_json_schema()
    required = set(schema.get("required", ())) if place == "query" else set(schema["properties"])
    return [
        {"name": name, "in": place, "required": name in required, "schema": _inlined(each, schema.get("$defs", {}))}
        for name, each in schema["properties"].items()
    ]


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Parameters hold small types such as enumerations; they are written out in place."""
    if isinstance(schema, dict):
        if (reference := schema.get("$ref")) is not None:
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        return {key: _inlined(value, definitions) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    return schema


def _responses(endpoint: Endpoint, references: _References) -> dict[str, Any]:
    good: dict[str, Any] = {"description": endpoint.summary}
    if endpoint.answer is not None:
        good["content"] = {JSON: {"schema": references[endpoint.answer, "serialization"]}}
    elif endpoint.content_types:
        good["content"] = {each: {} for each in endpoint.content_types}
    if endpoint.headers:
        good["headers"] = {
            name: {"description": meaning, "schema": {"type": "string"}} for name, meaning in endpoint.headers.items()
        }
    statuses = dict(_ALWAYS)
    if endpoint.reads_body or endpoint.body_types:
        statuses |= _WITH_BODY
    if endpoint.body or endpoint.query or endpoint.path_model:
        statuses |= _WITH_FIELDS
    if endpoint.security is not None:
        statuses |= _WITH_SECURITY
    statuses |= endpoint.errors
    refused = {
        str(status): {"description": meaning, "content": {JSON: {"schema": references[ErrorAnswer, "serialization"]}}}
        for status, meaning in sorted(statuses.items())
    }
    return {str(endpoint.status): good, **refused}
