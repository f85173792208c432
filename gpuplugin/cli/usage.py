"""How the command line helps: own usage of a wrong command, the nearest word, groups, examples."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_GROUPS = {
    "On a node": ("run", "doctor", "health", "top", "devices"),
    "Configuration": ("config", "cdi", "manifests"),
    "Simulation, without a GPU": ("demo", "sim", "record"),
    "Measurements": ("advise", "bench", "calibrate"),
    "This program": ("completion",),
}
"""The commands as the help lists them; others come last."""

_EXAMPLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "": ("docs/README.md", ("demo", "sim up --kubelet-dir /tmp/node", "doctor")),
    "run": (
        "docs/operations.md, docs/configuration.md",
        (
            "run --config-file config.yaml",
            "run --backend sim --scenario homelab --kubelet-dir /tmp/node",
        ),
    ),
    "devices": ("docs/configuration.md", ("devices", "devices --backend sim --json")),
    "config": ("docs/configuration.md", ()),
    "manifests": (
        "docs/deploy.md",
        (
            "manifests --overlay simulated",
            "manifests --component replicas-10 --image registry.example/gpuplugin:0.1.0",
        ),
    ),
    "config check": (
        "docs/configuration.md",
        (
            "config check config.yaml",
            "config check config.yaml --explain --scenario homelab",
            "config check - --json",
        ),
    ),
    "config schema": ("docs/configuration.md", ("config schema",)),
    "cdi": ("docs/configuration.md", ()),
    "cdi show": ("docs/configuration.md", ("cdi show --backend sim",)),
    "cdi remove": ("docs/configuration.md", ("cdi remove --cdi-root /var/run/cdi",)),
    "health": ("docs/health.md", ("health", "health --kubelet-dir /tmp/node --watch")),
    "top": ("docs/operations.md", ("top", "top --kubelet-dir /tmp/node")),
    "health clear": ("docs/health.md", ("health clear 3", "health clear all")),
    "health forget": (
        "docs/health.md",
        ("health forget GPU-8d3b7b5e-5f0f-4f0e-9c55-1f1f5f0f4f0e",),
    ),
    "doctor": (
        "docs/doctor.md",
        ("doctor", "doctor --root /host --plugin-uid 65534", "doctor --kubelet-dir /tmp/node"),
    ),
    "record": (
        "docs/scenarios.md",
        ("record --for 1h -o node.yaml", "record --scrub --backend sim -o node.yaml"),
    ),
    "calibrate": (
        "docs/simulation.md, docs/fidelity.md",
        (
            "calibrate -o l4.yaml",
            "calibrate --gpu 1 --levels -o l4.yaml",
            "calibrate --mps-command './infer --batch 8' -o l4.yaml",
        ),
    ),
    "demo": ("README.md", ("demo", "demo --pace 3", "demo --plain")),
    "completion": ("docs/commands.md", ("completion bash",)),
    "advise": (
        "docs/simulation.md",
        (
            "advise --workload api:15/100/2:8 --model l4 --slowdown-p95 4",
            "advise --record node.yaml --model l4 --request-ms ml/api=15 --json",
            "advise --check advice.json --prometheus http://prometheus:9090",
        ),
    ),
    "bench": ("docs/performance.md", ("bench --quick", "bench allocate --json run.json")),
    "sim": ("docs/simulation.md", ()),
    "sim up": (
        "docs/simulation.md",
        (
            "sim up --kubelet-dir /tmp/node",
            "sim up noisy-neighbour --kubelet-dir /tmp/node",
        ),
    ),
    "sim kubelet": (
        "docs/simulation.md",
        (
            "sim kubelet --kubelet-dir /tmp/node",
            "sim kubelet --kubelet-dir /tmp/node --pod trainer=nvidia.com/gpu:1",
        ),
    ),
    "sim pod": ("docs/simulation.md", ()),
    "sim pod create": (
        "docs/simulation.md",
        ("sim pod create trainer --kubelet-dir /tmp/node --limit nvidia.com/gpu=1",),
    ),
    "sim node": ("docs/simulation.md", ()),
    "sim node show": (
        "docs/simulation.md",
        ("sim node show --kubelet-dir /tmp/node --wait nvidia.com/gpu=80",),
    ),
    "sim inject": (
        "docs/simulation.md",
        (
            "sim inject --kubelet-dir /tmp/node --gpu 3 --xid 79",
            "sim inject --kubelet-dir /tmp/node --gpu 3 --recover",
            "sim inject --control /tmp/fleet.sock --node sim-7 --gpu 0 --xid 79",
        ),
    ),
    "sim run": ("docs/simulation.md", ("sim run noisy-neighbour --html noisy.html",)),
    "sim scenario": ("sim/scenarios/README.md", ()),
    "sim share": (
        "docs/simulation.md",
        ("sim share --model a100-sxm4-80gb --clients 3 --busy-ms 88.15",),
    ),
    "sim replay": ("docs/simulation.md", ()),
    "sim fleet": (
        "docs/fleet.md",
        (
            "sim fleet --nodes 500 --replicas 4 --taint",
            "sim fleet --scenario default=20 --scenario mig=4 --name-prefix gpu --label pool=a",
        ),
    ),
    "sim sweep": (
        "docs/simulation.md",
        ("sim sweep noisy-neighbour --set replicas=2,4,10 --seeds 4",),
    ),
    "sim env": ("docs/nvml.md", ("sim env --kubelet-dir /tmp/node -- nvidia-smi",)),
    "sim smi": ("docs/nvml.md", ("sim smi --kubelet-dir /tmp/node -- -L",)),
}
"""For each command the pages that tell more, and examples."""


_MOST_IN_USAGE = 20
"""Options that a line of usage names one by one."""


class Parser(argparse.ArgumentParser):
    """Tells wrong words with the usage of the command that they were given to."""

    _given: tuple[str, ...] = ()

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        self._given = tuple(args or ())
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            known = list(self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(rest)}{_near(rest[0], known)}")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """End with the usage; a required option may be there, and misspelt."""
        if message.startswith("the following arguments are required"):
            known = list(self._option_string_actions)
            words = [word.partition("=")[0] for word in self._given if word.startswith("--")]
            for word in words:
                if not any(one.startswith(word) for one in known):
                    message += f"; {word} is unknown{_near(word, known)}"
        super().error(message)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        known = [str(choice) for choice in action.choices or ()]
        if action.choices is not None and value not in action.choices:
            text = f"invalid choice: {value!r}{_near(str(value), known)}; choose {_or(known)}"
            raise argparse.ArgumentError(action, text)


class TopParser(Parser):
    """The program's own help lists its commands in groups."""

    def format_help(self) -> str:
        action = next(
            one
            for one in self._actions
            if isinstance(one, argparse._SubParsersAction)  # noqa: SLF001
        )
        helps = {one.dest: one.help or "" for one in action._get_subactions()}  # noqa: SLF001
        grouped = {name for names in _GROUPS.values() for name in names}
        groups = {**_GROUPS, "Others": tuple(name for name in helps if name not in grouped)}
        lines = [self.format_usage().rstrip(), "", self.description or ""]
        for title, names in groups.items():
            rows = [f"  {name:12}{helps[name]}" for name in names if name in helps]
            lines += ["", f"{title}:", *rows] if rows else []
        lines += ["", "'gpuplugin COMMAND --help' has the options of a command, and examples."]
        return "\n".join([*lines, "", self.epilog or ""]).rstrip() + "\n"


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _near(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word.partition("=")[0], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class _Formatter(argparse.HelpFormatter):
    """Fills each line of a description by itself, and leaves indented ones as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line
            if line.startswith("  ")
            else super(_Formatter, self)._fill_text(line, width, indent)
            for line in text.splitlines()
        )


def add_examples(parser: argparse.ArgumentParser, path: str = "") -> None:
    """Put examples and links below the help of a parser and of its commands."""
    pages, examples = _EXAMPLES.get(path, ("docs/commands.md", ()))
    lines = [parser.epilog, ""] if parser.epilog else []
    if examples:
        lines += ["examples:", *(f"  gpuplugin {example}" for example in examples), ""]
    parser.epilog = "\n".join([*lines, f"more: {pages}"])
    parser.formatter_class = _Formatter
    if len(parser._actions) > _MOST_IN_USAGE:  # noqa: SLF001
        parser.usage = " ".join(("%(prog)s [OPTION ...]", *_needed(parser)))
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for name, inner in action.choices.items():
                add_examples(inner, f"{path} {name}".strip())


def _needed(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What stands in a line of usage beside the options that may be left out."""
    for action in parser._actions:  # noqa: SLF001
        name = str(action.metavar or action.dest)
        if action.option_strings and action.required:
            yield f"{action.option_strings[0]} {name}"
        elif not action.option_strings:
            yield f"[{name}]" if action.nargs in ("?", "*") else name


def examples() -> list[str]:
    """All examples, as arguments of the program."""
    return [example for _, several in _EXAMPLES.values() for example in several]
