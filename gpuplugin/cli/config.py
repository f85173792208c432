"""`gpuplugin config`: check files, explain what they do on a node, print the schema."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpuplugin.cli.backends import BackendError, read_gpus, told
from gpuplugin.cli.text import fail
from gpuplugin.config.document import parse_document, parse_documents
from gpuplugin.config.load import load_settings, read_text
from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.config.options import OPTIONS
from gpuplugin.config.plans import inventory_plan
from gpuplugin.config.problems import dotted
from gpuplugin.config.settings import SET_BY, Settings
from gpuplugin.config.wrappers import EXTENSION, entries, entry, why_none
from gpuplugin.core.explanation import explain
from gpuplugin.core.inventory import InventoryError
from hal import HalError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from gpuplugin.config.document import Document
    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.options import Option

_INDEX = re.compile(r"\d+(:\d+)?", re.ASCII)
_STDIN = "standard input"


@dataclass
class _Checked:
    """A configuration of a file, under `path` (empty: all of it), or why it is none."""

    path: str
    document: Document | None = None
    loaded: Loaded | None = None
    error: ConfigError | None = None


def schema(_parsed: argparse.Namespace) -> int:
    """Print the JSON schema of the file."""
    _print_json(file_schema())
    return 0


def file_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, for editors: unknown keys are wrong."""
    schema = Settings.model_json_schema()
    del schema["$defs"]["DaemonSettings"], schema["properties"]["daemon"]
    for section in (schema, *schema["$defs"].values()):
        section["additionalProperties"] = False
        section.pop("title")
        for key in section["properties"].values():
            key.pop("title", None)
            key.pop(SET_BY, None)
            _allow_one(key)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of gpuplugin, in the format of NVIDIA's device plugin",
        **schema,
        "patternProperties": {f"^{EXTENSION}": {}},
    }


def _allow_one(key: dict[str, Any]) -> None:
    """A list of words may be a single word, too."""
    items = key.get("items")
    if key.get("type") == "array" and isinstance(items, dict) and items.get("type") == "string":
        whole = {"type": key.pop("type"), "items": key.pop("items")}
        key["anyOf"] = [whole, items]


def check(parsed: argparse.Namespace) -> int:
    """Check a file by itself, without flags and variables; 1 if it cannot be used."""
    try:
        text = sys.stdin.read() if parsed.file == "-" else read_text(Path(parsed.file))
        found = list(_found(text, _STDIN if parsed.file == "-" else parsed.file))
    except ConfigError as error:
        found = [_Checked("", error=error)]
    except UnicodeDecodeError as error:
        found = [_Checked("", error=ConfigError([Problem(_STDIN, "", str(error))]))]
    given = _options(parsed)
    for one in found:
        _load(one, given)
    explained = {one.path: _explained(one) for one in found if parsed.explain and one.loaded}
    if parsed.json:
        _as_json(found, explained)
    else:
        _as_text(found, explained)
    failed = any(isinstance(one, str) for one in explained.values())
    return 1 if failed or any(one.error for one in found) else 0


def _found(text: str, name: str) -> Iterator[_Checked]:
    """The configurations of a file: the file itself, or the entries of what it holds."""
    documents = parse_documents(text, name)
    wrapped = [one for one in documents if why_none(one) is not None]
    texts = [(one, path, inner) for one in wrapped for path, inner in entries(one).items()]
    if not texts:
        yield _Checked("", parse_document(text, name))
    for document, path, inner in texts:
        checked = _Checked(dotted(path))
        try:
            checked.document = entry(document, path, inner)
        except ConfigError as error:
            checked.error = error
        yield checked


def _options(parsed: argparse.Namespace) -> dict[Option, str]:
    """The options that hold for the check: the GPUs to explain, and strictness."""
    by_flag = {option.flags[0]: option for option in OPTIONS}
    given = {"--strict-config": "true"} if parsed.strict else {}
    if parsed.scenario:
        given |= {"--backend": "sim", "--scenario": parsed.scenario}
    return {by_flag[flag]: text for flag, text in given.items()}


def _load(one: _Checked, given: Mapping[Option, str]) -> None:
    if one.error is None:
        try:
            one.loaded = load_settings(given, {}, None, one.document)
        except ConfigError as error:
            one.error = error


def _explained(one: _Checked) -> list[dict[str, object]] | str:
    """What each GPU is advertised as, and why; or why that is not known."""
    if one.loaded is None or one.document is None:
        return "the configuration cannot be used"
    settings, document = one.loaded.settings, one.document
    try:
        gpus = explain(read_gpus(settings), inventory_plan(settings))
    except (BackendError, HalError, InventoryError) as error:
        return told(error)
    return [
        {
            **asdict(gpu),
            "reasons": [
                {
                    "key": dotted(reason.key),
                    "where": document.where(reason.key) if reason.key in document.lines else "",
                    "text": reason.text,
                }
                for reason in gpu.reasons
            ],
        }
        for gpu in gpus
    ]


def _as_text(found: Sequence[_Checked], explained: Mapping[str, object]) -> None:
    for one in found:
        if one.path:
            print(f"--- # {one.path}")
        if one.loaded is None:
            print(one.error, file=sys.stderr)
            continue
        for warning in one.loaded.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        for note in _notes(one.loaded):
            print(f"note: {note}", file=sys.stderr)
        reasons = explained.get(one.path)
        if isinstance(reasons, list):
            print("\n".join(line for gpu in reasons for line in _gpu_lines(gpu)))
        elif reasons:
            fail(f"the GPUs cannot be explained: {reasons}")
        else:
            print(yaml.safe_dump(_effective(one.loaded), sort_keys=False).rstrip())
    if any(one.path for one in found):
        text = "these are entries of another document; the plugin is given the text of one of them"
        print(f"note: {text}", file=sys.stderr)


def _gpu_lines(gpu: Mapping[str, Any]) -> Iterator[str]:
    count = "1 device" if gpu["replicas"] == 1 else f"{gpu['replicas']} replicas"
    what = f"{gpu['resource']}, {count}" if gpu["resource"] else "not advertised"
    yield f"GPU {gpu['index']}  {gpu['product']}  {gpu['uuid']}: {what}"
    for reason in gpu["reasons"]:
        where = reason["where"] or "default"
        place = f"{reason['key']} ({where})" if reason["key"] else where
        yield f"    {place}: {reason['text']}"


def _as_json(found: Sequence[_Checked], explained: Mapping[str, object]) -> None:
    checks = []
    for one in found:
        check: dict[str, object] = {"ok": one.error is None}
        told = one.error or one.loaded
        check["warnings"] = [asdict(warning) for warning in told.warnings] if told else []
        if one.error is not None:
            check["errors"] = [asdict(problem) for problem in one.error.problems]
        if one.loaded is not None:
            check["notes"] = list(_notes(one.loaded))
            check["config"] = _effective(one.loaded)
        if one.path in explained:
            check["gpus"] = explained[one.path]
        checks.append(check)
    if found[0].path:
        entries = {one.path: check for one, check in zip(found, checks, strict=True)}
        _print_json({"ok": all(check["ok"] for check in checks), "entries": entries})
    else:
        _print_json(checks[0])


def _notes(loaded: Loaded) -> Iterator[str]:
    """What is right, and may come to mean something else."""
    settings = loaded.settings
    terms = {"gpus.include": settings.gpus.include, "gpus.exclude": settings.gpus.exclude}
    if settings.sharing.time_slicing is not None:
        for position, entry_ in enumerate(settings.sharing.time_slicing.resources):
            key = f"sharing.timeSlicing.resources[{position}].devices"
            terms[key] = sorted(entry_.devices.ids or ())
    for key, names in terms.items():
        if indices := [name for name in names if _INDEX.fullmatch(name)]:
            yield (
                f"{loaded.source}: {key}: an index ({', '.join(indices)}) means another GPU once "
                "one is removed; select by UUID ('gpuplugin devices' lists them)"
            )


def _effective(loaded: Loaded) -> dict[str, object]:
    """The configuration with all defaults, as a file that means the same."""
    return {
        key: _without_nulls(value) for key, value in loaded.effective.items() if key != "daemon"
    }


def _without_nulls(value: object) -> object:
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(one) for key, one in value.items() if one is not None}


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))
