"""YAML text as data; whatever is wrong with the text is one kind of error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

if TYPE_CHECKING:
    from collections.abc import Iterator


class YamlError(Exception):
    """The text is not YAML: `problem` in words, and the `line` (from 1) where it is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem if line is None else f"line {line}: {problem}")
        self.problem = problem
        self.line = line


def read_yaml(text: str) -> object:
    """The data of one document; None if it is empty.

    Raises:
        YamlError: not YAML, or more than one document.
    """
    with _loader(text) as loader:
        data: object = loader.get_single_data()
        return data


def read_yaml_documents(text: str) -> tuple[object, ...]:
    """The data of all documents; None for each that is empty.

    Raises:
        YamlError: not YAML.
    """
    documents: list[object] = []
    with _loader(text) as loader:
        while loader.check_node():
            documents.append(loader.construct_document(loader.get_node()))
    return tuple(documents)


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of one document, which know their lines; None if it is empty.

    Raises:
        YamlError: not YAML, or more than one document.
    """
    with _loader(text) as loader:
        return loader.get_single_node()


class _Loader(yaml.SafeLoader):
    """The safe loader, which lets Python's own errors through where a value is not of its tag."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """The value of a node.

        Raises:
            ConstructorError: there is none.
        """
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(
                problem=f"not a valid {kind}", problem_mark=node.start_mark
            ) from error


@contextmanager
def _loader(text: str) -> Iterator[_Loader]:
    try:
        yield _Loader(text)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlError(error.problem or "not valid YAML", line) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"the character #x{error.character:04x} is not allowed", line) from error
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise YamlError("nested too deeply") from error
