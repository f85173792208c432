"""Writes the man page of the program into build/man: `make man`."""

from __future__ import annotations

from pathlib import Path

from argparse_manpage.manpage import Manpage

from gpuplugin.cli.parser import build_parser

PAGE = Path(__file__).parents[1] / "build/man/gpuplugin.1"


def page() -> str:
    """The page in troff, from the parser of the command line."""
    parser = build_parser()
    data = {"project_name": "gpuplugin", "manual_title": "gpuplugin"}
    return str(Manpage(parser, data, format="single-commands-section"))


def main() -> None:
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
