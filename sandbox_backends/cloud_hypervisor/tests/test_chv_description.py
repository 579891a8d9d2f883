"""The API description catches mistakes, and what is read from responses is in it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest
from iii_sandbox_cloud_hypervisor import api
from iii_sandbox_cloud_hypervisor.api import Pong, VmInfo

from .fake.description import Description

PAYLOAD = {"payload": {"kernel": "/k"}}


@pytest.mark.parametrize(
    ("config", "wrong"),
    [
        ({}, "'payload' is a required property"),
        ({**PAYLOAD, "disk": []}, "Additional properties are not allowed ('disk' was unexpected)"),
        ({**PAYLOAD, "memory": {"size": "512M"}}, "'512M' is not of type 'integer'"),
        ({**PAYLOAD, "vsock": {"cid": 2, "socket": "s"}}, "2 is less than the minimum of 3"),
        ({**PAYLOAD, "serial": {"mode": "file"}}, "'file' is not one of"),
        ({**PAYLOAD, "cpus": {"boot_vcpus": 1}}, "'max_vcpus' is a required property"),
        ({**PAYLOAD, "disks": [{"path": "/p", "readonly": 1}]}, "1 is not of type 'boolean'"),
        ({**PAYLOAD, "disks": [{"path": "/p", "image_type": "raw"}]}, "'raw' is not one of"),
    ],
)
def test_it_catches_mistakes(description: Description, config: dict[str, Any], wrong: str) -> None:
    assert wrong in str(description.wrong_value("VmConfig", config))


def test_it_catches_wrong_calls(description: Description) -> None:
    assert description.wrong_request("GET", "vm.boot", b"") == "there is no GET vm.boot"
    assert description.wrong_request("PUT", "vm.boot", b"{}") == "it takes no body"
    assert "no JSON" in str(description.wrong_request("PUT", "vm.create", b"{"))
    assert description.wrong_response("PUT", "vm.boot", 200, b"") == "PUT vm.boot has no status 200"
    assert "'version' is a required property" in str(description.wrong_response("GET", "vmm.ping", 200, b"{}"))
    assert description.wrong_response("PUT", "vm.boot", 404, b"") is None


@pytest.mark.parametrize(("kind", "schema"), [(Pong, "VmmPingResponse"), (VmInfo, "VmInfo")])
def test_what_is_read_is_described(description: Description, kind: type[msgspec.Struct], schema: str) -> None:
    described = description.document["components"]["schemas"][schema]
    for field in msgspec.structs.fields(kind):
        assert field.encode_name in described["properties"]
        assert not field.required or field.encode_name in described["required"]


def test_every_call_is_described(description: Description) -> None:
    called = [
        (node.func.attr, node.args[0].value)
        for node in ast.walk(ast.parse(Path(api.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("_get", "_put")
        and isinstance(node.args[0], ast.Constant)
    ]
    assert len(called) == 7
    for method, path in called:
        assert description.operation(method.removeprefix("_"), str(path)) is not None
