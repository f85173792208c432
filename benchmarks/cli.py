"""`gpuplugin bench`: measure, compare two runs, or profile one call."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks import SUITES
from benchmarks.plot import as_svg
from benchmarks.plugins import NoNamespace, PluginSpec, check_namespaces, spec_from
from benchmarks.results import CannotRead, as_json, read_run
from benchmarks.run import Failed, Wanted, misses, run
from benchmarks.servers import ENGINES
from benchmarks.show import as_comparison, as_table, compare_runs
from gpuplugin.cli.text import output_file

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T", bound=str)


def add_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (default: all)"
    )
    bench.add_argument("--quick", action="store_true", help="less of everything: a minute in all")
    bench.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="measure this device plugin too; {kubelet_dir} and {config} (a file in NVIDIA's "
        "format) are filled in; may be repeated",
    )
    bench.add_argument(
        "--private-kubelet-dir",
        action="append",
        default=[],
        metavar="NAME",
        help="of a --plugin whose folder is always /var/lib/kubelet: give it a private mount "
        "there (needs root); may be repeated",
    )
    bench.add_argument(
        "--floor",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="beside the --plugin of that name, a plugin in its language whose handlers are empty "
        "and which lists its own devices: what its Allocate costs at least",
    )
    bench.add_argument(
        "--engine", action="append", metavar="ENGINE", help="RPC engine (default: every one)"
    )
    bench.add_argument(
        "--client", choices=("raw", "grpcio"), default="raw", help="who calls (default raw)"
    )
    bench.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    bench.add_argument("--plot", metavar="FILE", help="write a picture, as SVG")
    bench.add_argument(
        "--profile", metavar="FILE", help="only see where an Allocate call spends its time, as SVG"
    )
    bench.add_argument(
        "--all", action="store_true", help="every size of request, not the worst alone"
    )
    bench.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of orders and resampling (default 1)"
    )
    bench.add_argument("--calls", type=_positive, metavar="N", help=argparse.SUPPRESS)
    bench.add_argument("--strict", action="store_true", help="fail if a target is missed")
    bench.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="measure nothing, compare two files of --json",
    )
    bench.add_argument(
        "--threshold",
        type=float,
        default=1.3,
        metavar="X",
        help="with --compare: worse by this factor is worse (default 1.3)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, found {text!r}")
    return int(text)


def bench(parsed: argparse.Namespace) -> int:
    # Plugins and servers are in process groups of their own: SIGTERM has to end them, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if parsed.compare:
            return _compare(Path(parsed.compare[0]), Path(parsed.compare[1]), parsed.threshold)
        wanted = _wanted(parsed)
        if parsed.profile:
            return _profile(wanted, Path(parsed.profile))
        if any(spec.private for spec in wanted.others):
            check_namespaces()
        return _measure(wanted, parsed)
    except (CannotRead, Failed, NoNamespace, OSError) as error:
        print(f"gpuplugin: {error}", file=sys.stderr)
        return 1


def _measure(wanted: Wanted, parsed: argparse.Namespace) -> int:
    progress = _Progress()
    with ExitStack() as stack:
        # A file that cannot be written is an error before the minutes that it takes, not after.
        writers = ((parsed.json, as_json), (parsed.plot, as_svg))
        files = [(stack.enter_context(output_file(name)), made) for name, made in writers if name]
        try:
            found = run(wanted, progress.show)
        finally:
            progress.end()
        print("\n".join(as_table(found, everything=parsed.all)))
        for stream, made in files:
            stream.write(made(found))
    return 1 if parsed.strict and misses(found) else 0


def _compare(before: Path, after: Path, threshold: float) -> int:
    found = compare_runs(read_run(before), read_run(after))
    print("\n".join(as_comparison(found, threshold)))
    return int(any(change.worse_than(threshold) for change in found))


def _profile(wanted: Wanted, file: Path) -> int:
    from benchmarks.profile import profiled

    picture, lines = profiled(wanted.engines[0], wanted.calls or (2000 if wanted.quick else 10_000))
    with output_file(file) as stream:
        stream.write(picture)
    print("\n".join(lines))
    return 0


def _wanted(parsed: argparse.Namespace) -> Wanted:
    suites = _known("suite", parsed.suites, SUITES, parsed)
    engines = _known("engine", parsed.engine or [], ENGINES, parsed)
    return Wanted(
        suites=suites,
        engines=engines,
        others=_others(parsed),
        client=parsed.client,
        seed=parsed.seed,
        quick=parsed.quick,
        calls=parsed.calls,
        options=_options(parsed, suites),
    )


def _others(parsed: argparse.Namespace) -> list[PluginSpec]:
    private = frozenset(parsed.private_kubelet_dir)
    specs, floors = (_specs(parsed, flag, private) for flag in ("--plugin", "--floor"))
    for name in parsed.private_kubelet_dir:
        if name not in specs:
            parsed.wrong_usage(f"--private-kubelet-dir: there is no --plugin {name}=...")
    for name in floors.keys() - specs.keys():
        parsed.wrong_usage(f"--floor: there is no --plugin {name}=...")
    return [replace(spec, floor=floors.get(name)) for name, spec in specs.items()]


def _specs(parsed: argparse.Namespace, flag: str, private: frozenset[str]) -> dict[str, PluginSpec]:
    """The plugins of a flag by name; wrong usage ends the program."""
    found: dict[str, PluginSpec] = {}
    for text in vars(parsed)[flag.removeprefix("--")]:
        try:
            spec = spec_from(text, private)
        except ValueError as error:
            parsed.wrong_usage(f"{flag}: {error}")
            raise  # not reached: wrong usage ends the program
        if spec.name in found or spec.name.startswith("gpuplugin"):
            parsed.wrong_usage(f"{flag}: give each a name of its own, other than gpuplugin")
        found[spec.name] = spec
    return found


def _known(
    what: str, given: Sequence[str], known: tuple[T, ...], parsed: argparse.Namespace
) -> tuple[T, ...]:
    for name in given:
        if name not in known:
            parsed.wrong_usage(f"no {what} {name!r}; there are {', '.join(known)}")
    return tuple(dict.fromkeys(one for name in given for one in known if one == name)) or known


def _options(parsed: argparse.Namespace, suites: Sequence[str]) -> tuple[str, ...]:
    """How it was measured, for the file."""
    options = [*suites, "--client", parsed.client]
    options += ["--quick"] if parsed.quick else []
    options += [f"--plugin {shlex.quote(text)}" for text in parsed.plugin]
    return tuple(options)


class _Progress:
    """Shows on standard error what is being measured: on a terminal in one line."""

    def __init__(self) -> None:
        self._what = ""
        self._terminal = sys.stderr.isatty()

    def show(self, what: str, share: float) -> None:
        if self._terminal:
            print(f"\r\033[K{what} {share:4.0%}", end="", file=sys.stderr, flush=True)
        elif what != self._what:
            print(what, file=sys.stderr, flush=True)
        self._what = what

    def end(self) -> None:
        if self._terminal and self._what:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
