"""A schema of CDI specs, made from the CDI specification 0.6.0 and what runtimes refuse.

The library that containerd and CRI-O read specs with refuses a whole file if one device of it has
no edits, or if it has no device: the schema does so too.
"""

from __future__ import annotations

from typing import Any, Final

_UINT32: Final = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_PATH: Final = {"type": "string", "pattern": r"^/[^\x00]*$"}
_STRINGS: Final = {"type": "array", "items": {"type": "string"}}
_ENV: Final = {"type": "array", "items": {"type": "string", "pattern": r"^[^=]+="}}
_ANNOTATIONS: Final = {"type": "object", "additionalProperties": {"type": "string"}}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_DEVICE_NODE: Final = _closed(
    {
        "path": _PATH,
        "hostPath": _PATH,
        "type": {"enum": ["b", "c", "u", "p"]},
        "major": {"type": "integer"},
        "minor": {"type": "integer"},
        "fileMode": _UINT32,
        "permissions": {"type": "string", "pattern": "^[rwm]{1,3}$"},
        "uid": _UINT32,
        "gid": _UINT32,
    },
    "path",
)
_HOOK: Final = _closed(
    {
        "hookName": {
            "enum": [
                "prestart",
                "createRuntime",
                "createContainer",
                "startContainer",
                "poststart",
                "poststop",
            ]
        },
        "path": _PATH,
        "args": _STRINGS,
        "env": _ENV,
        "timeout": {"type": "integer", "minimum": 1},
    },
    "hookName",
    "path",
)
_MOUNT: Final = _closed(
    {
        "hostPath": _PATH,
        "containerPath": _PATH,
        "options": _STRINGS,
        "type": {"type": "string"},
    },
    "hostPath",
    "containerPath",
)
_EDITS: Final = _closed(
    {
        "env": _ENV,
        "deviceNodes": {"type": "array", "items": _DEVICE_NODE},
        "hooks": {"type": "array", "items": _HOOK},
        "mounts": {"type": "array", "items": _MOUNT},
    }
)
_NOT_EMPTY: Final = {
    "anyOf": [
        {"properties": {part: {"minItems": 1}}, "required": [part]}
        for part in ("env", "deviceNodes", "hooks", "mounts")
    ]
}
_DEVICE: Final = _closed(
    {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$"},
        "annotations": _ANNOTATIONS,
        "containerEdits": {"allOf": [_EDITS, _NOT_EMPTY]},
    },
    "name",
    "containerEdits",
)

SPEC: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_closed(
        {
            "cdiVersion": {"const": "0.6.0"},
            "kind": {
                "type": "string",
                "pattern": (
                    "^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
                ),
            },
            "annotations": _ANNOTATIONS,
            "devices": {"type": "array", "items": _DEVICE, "minItems": 1},
            "containerEdits": _EDITS,
        },
        "cdiVersion",
        "kind",
        "devices",
    ),
}
