"""What of Talos' machine configuration the patches use: kinds, keys and types, for each release.

Written from the configuration reference of each release (docs.siderolabs.com/talos/v1.10 to v1.14,
reference/configuration) and, for what excludes what, from the validation in siderolabs/talos
(pkg/machinery/config/types/k8s/node.go and cri/customization.go, release-1.14). For 1.15, which is
not released, as for 1.14. Everything that is not listed is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.deploy.rendering import Object

RELEASES = ("1.10", "1.11", "1.12", "1.13", "1.14", "1.15")
DOCUMENTS_SINCE = "1.14"
"""The release with KernelModuleConfig and its like, in which `machine.kernel` is deprecated."""

_TEXT = {"type": "string"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_CUSTOMIZATION = "/etc/cri/conf.d/20-customization.part"


def _object(*required: str, **properties: Any) -> Object:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_MACHINE = _object(
    machine=_object(
        kernel=_object(modules={"type": "array", "items": _object("name", name=_TEXT)}),
        sysctls=_TEXTS,
        nodeLabels=_TEXTS,
        install=_object(disk=_TEXT, image=_TEXT),
        files={
            "type": "array",
            "items": _object(
                "op",
                "path",
                content=_TEXT,
                # Outside /var nothing else may be created.
                path={"const": _CUSTOMIZATION},
                op={"enum": ["create"]},
            ),
        },
    )
)
_DOCUMENTS = {
    "KernelModuleConfig": _object("name", name=_TEXT),
    "KubeNodeConfig": _object(labels=_TEXTS, annotations=_TEXTS, taints=_TEXTS),
    # The name of the legacy file is reserved.
    "CRICustomizationConfig": _object(
        "name", name={"type": "string", "not": {"const": "customization"}}, content=_TEXT
    ),
    "UnattendedInstallConfig": _object(
        installer=_object(image=_TEXT),
        provisioning=_object("diskSelector", diskSelector=_object("match", match=_TEXT)),
    ),
}
GENERATED_BY_1_14 = {"apiVersion": "v1alpha1", "kind": "KubeNodeConfig", "labels": {}}
"""`talosctl gen config` of 1.14 writes such a document for workers, too."""


def problems(documents: Sequence[Object], release: str) -> list[str]:
    """What Talos of a release would refuse in a configuration of these documents."""
    found = [problem for one in documents for problem in _problems_of(one, release)]
    kinds = [one.get("kind") for one in documents]
    machine = [one.get("machine", {}) for one in documents if "kind" not in one]
    if "KubeNodeConfig" in kinds and any("nodeLabels" in one for one in machine):
        found.append(".machine.nodeLabels is already set in v1alpha1 config")
    if "UnattendedInstallConfig" in kinds and any("install" in one for one in machine):
        found.append("machine.install and UnattendedInstallConfig")
    return found


def _problems_of(document: Object, release: str) -> list[str]:
    if "kind" not in document:
        return _against(document, _MACHINE)
    kind = document["kind"]
    is_new = RELEASES.index(release) >= RELEASES.index(DOCUMENTS_SINCE)
    if not is_new or kind not in _DOCUMENTS:
        return [f"{kind} is no kind of {release}"]
    if document.get("apiVersion") != "v1alpha1":
        return [f"{kind} needs apiVersion v1alpha1"]
    rest = {key: one for key, one in document.items() if key not in ("apiVersion", "kind")}
    return _against(rest, _DOCUMENTS[kind])


def _against(value: Object, schema: Object) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(value)]
