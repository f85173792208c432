"""The version of the package, from its metadata."""

from importlib.metadata import version

VERSION = version("gpuplugin")
