"""Cloud Hypervisor's API description, to hold requests and responses against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

FILE = Path(__file__).parents[1] / "data" / "cloud-hypervisor-openapi.yaml"
_NAME = "urn:cloud-hypervisor"


class Description:
    """The description, read strictly: a property that it does not name is wrong, not extra."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        strict = deepcopy(document)
        for schema in strict["components"]["schemas"].values():
            if "properties" in schema:
                schema.setdefault("additionalProperties", False)
        resource: Resource[Any] = Resource(contents=strict, specification=DRAFT4)
        self._registry: Registry[Any] = Registry().with_resource(_NAME, resource)

    @classmethod
    def load(cls, path: Path = FILE) -> Description:
        """From the file itself, or from the JSON of it, which is read faster."""
        if path.suffix == ".json":
            return cls(json.loads(path.read_bytes()))
        import yaml

        return cls(yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader))

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """``path`` is such as ``vm.boot``."""
        found: dict[str, Any] | None = self.document["paths"].get(f"/{path}", {}).get(method.lower())
        return found

    def wrong_request(self, method: str, path: str, body: bytes) -> str | None:
        """What is wrong with a request; None if nothing is."""
        operation = self.operation(method, path)
        if operation is None:
            return f"there is no {method} {path}"
        if "requestBody" not in operation:
            return "it takes no body" if body else None
        return self._wrong_body(operation["requestBody"], body)

    def wrong_response(self, method: str, path: str, status: int, body: bytes) -> str | None:
        """What is wrong with a response; None if nothing is."""
        operation = self.operation(method, path) or {"responses": {}}
        for code, response in operation["responses"].items():
            if int(code) == status:
                return self._wrong_body(response, body) if "content" in response else None
        return f"{method} {path} has no status {status}"

    def wrong_value(self, schema: str, value: object) -> str | None:
        """What is wrong with a value of a schema of that name; None if nothing is."""
        return "; ".join(self._errors(f"#/components/schemas/{schema}", value)) or None

    def _wrong_body(self, holder: dict[str, Any], body: bytes) -> str | None:
        reference = holder["content"]["application/json"]["schema"]["$ref"]
        try:
            value = json.loads(body)
        except ValueError as error:
            return f"no JSON: {error}"
        return "; ".join(self._errors(reference, value)) or None

    def _errors(self, reference: str, value: object) -> Iterator[str]:
        validator = Draft4Validator({"$ref": _NAME + reference}, registry=self._registry)
        for error in validator.iter_errors(value):
            yield f"{'.'.join(map(str, error.absolute_path)) or 'it'}: {error.message}"
