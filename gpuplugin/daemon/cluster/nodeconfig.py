"""The configuration of this node among several: a folder of files, and the label that chooses.

The choice is made anew at each reading, so it follows the label and the folder's content alike.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gpuplugin.config.loaded import ConfigError, Problem
from gpuplugin.core.nodechoice import UnknownName, choose
from gpuplugin.daemon.cluster.nodelabel import LabelWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuplugin.config.loaded import Loaded
    from gpuplugin.config.settings import Settings

log = logging.getLogger(__name__)


def config_names(folder: Path) -> frozenset[str]:
    """Files that a node may choose; those that begin with `..` are the kubelet's own.

    Raises:
        ConfigError: the folder cannot be read.
    """
    try:
        return frozenset(
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith("..") and entry.is_file()
        )
    except OSError as error:
        problem = Problem(str(folder), "", f"{error.strerror}: mount the ConfigMap there")
        raise ConfigError((problem,)) from error


class NodeChoice:
    """Reads the configuration that the node's label chooses; `read` reads one file, or the default.

    The label is the one that `watch` heard last.
    """

    def __init__(
        self,
        folder: Path,
        default: str,
        watch: LabelWatch,
        read: Callable[[str | None], Loaded],
    ) -> None:
        self.folder = folder
        self.watch = watch
        self._default = default
        self._read = read

    def load(self) -> Loaded:
        """The configuration for the label.

        Raises:
            ConfigError: the name is unknown, or the file is wrong.
        """
        return self._load(self.watch.label)

    def load_first(self) -> Loaded:
        """The same at the start; a label that chooses nothing good does not keep a node without.

        Raises:
            ConfigError: what nodes without a label get is wrong, too.
        """
        self.watch.read_first()
        try:
            return self.load()
        except ConfigError as error:
            log.error(  # noqa: TRY400 - the text says it all
                "%s; the node begins as if it had no label",
                error,
                extra={"event": "config-refused"},
            )
            return self._load(None)

    def _load(self, label: str | None) -> Loaded:
        try:
            name = choose(label, self._default, config_names(self.folder))
        except UnknownName as error:
            raise ConfigError((Problem(str(self.folder), "", str(error)),)) from error
        return self._read(None if name is None else str(self.folder / name))


def node_choice(settings: Settings, read: Callable[[str | None], Loaded]) -> NodeChoice | None:
    """The choice that the settings ask for, if they do.

    Raises:
        ConfigError: the API client is not installed, or no cluster is known.
    """
    daemon = settings.daemon
    if not daemon.config_map_dir:
        return None
    try:
        from gpuplugin.daemon.cluster.kubeapi import NoCluster
        from gpuplugin.daemon.cluster.kubelabel import NodeLabel
    except ImportError as error:
        text = f"{error}: pip install 'gpuplugin[kubernetes]'"
        raise ConfigError((Problem("--config-map-dir", "", text),)) from error
    try:
        source = NodeLabel(daemon.node_name)
    except NoCluster as error:
        raise ConfigError((Problem("--config-map-dir", "", str(error)),)) from error
    return NodeChoice(Path(daemon.config_map_dir), daemon.default_config, LabelWatch(source), read)
