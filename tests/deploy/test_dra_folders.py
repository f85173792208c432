"""What the init container leaves lets the plugin keep claims and write CDI specs, as either user.

Run as root: the rendered command with the rights that it is rendered with, on folders of this
machine, and then the plugin's own code with the plugin's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.policy import OWN_GROUP
from tests.deploy.rendering import ROOT, built_with, chart, plugin_of, pod_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.deploy.rendering import Object

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root, which takes the rights of others, and setpriv of util-linux",
)
USER = 65534
CLAIMS = "/var/lib/kubelet/plugins/gpu.gpuplugin.dev"
CDI = "/var/run/cdi"

WORK = """
import sys
from pathlib import Path
from gpuplugin.core.dra.claims import Claim, ClaimRef, Claims, ClaimState
from gpuplugin.daemon.dra.claimstore import ClaimStore, to_lock
from gpuplugin.daemon.wholefiles import write_whole

claims, cdi, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = ClaimStore(claims, "boot", lambda: Claims("boot"))
before = sorted(store.claims.by_uid)
mine = Claim(ClaimRef("default", name, name), ClaimState.PREPARED, ())
store.change(lambda now: Claims(now.boot_id, {**now.by_uid, name: mine}))
for spec in cdi.glob("gpuplugin.dev-claim-*.json"):
    spec.unlink()
write_whole(cdi / f"gpuplugin.dev-claim-{name}.json", "{}", 0o644)
(claims / f"dra-{name}.sock").touch()
with to_lock(claims / "slices.lock"):
    pass
print(",".join(before))
"""


@pytest.fixture
def folders() -> Iterator[dict[str, Path]]:
    """The host's folders as the kubelet makes them, by the path in the pod."""
    with tempfile.TemporaryDirectory(prefix="gp") as name:
        root = Path(name)
        root.chmod(0o755)
        made = {path: root / path.rpartition("/")[2] for path in (CLAIMS, CDI)}
        for folder in made.values():
            folder.mkdir(mode=0o755)
        yield made


def hand_over(found: list[Object], folders: dict[str, Path]) -> None:
    """Run the init container as it is rendered, on these folders."""
    pod = pod_of(found)
    (init,) = [one for one in pod["initContainers"] if one["name"] == "hand-over-claim-folders"]
    security = init["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert {one["mountPath"] for one in init["volumeMounts"]} == folders.keys()
    command = list(init["command"])
    for path, folder in folders.items():
        command = [one.replace(path, str(folder)) for one in command]
    groups = pod["securityContext"]["supplementalGroups"]
    as_user(security["runAsUser"], groups, command, "-all,+chown")


def as_user(uid: int, groups: list[int], command: list[str], capabilities: str = "-all") -> str:
    words = [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", f"--groups={','.join(map(str, groups))}",
        f"--bounding-set={capabilities}", "--no-new-privs",
    ]  # fmt: skip
    done = subprocess.run(
        [*words, *command], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def work(found: list[Object], folders: dict[str, Path], name: str) -> str:
    """What an instance of the plugin does, as the user of these objects; claims that it found."""
    security = plugin_of(found)["securityContext"]
    groups = pod_of(found)["securityContext"]["supplementalGroups"]
    arguments = [str(folders[CLAIMS]), str(folders[CDI]), name]
    command = [sys.executable, "-c", WORK, *arguments]
    return as_user(security["runAsUser"], groups, command)


PLAIN = [lambda: built_with("dra"), lambda: chart("allocation: dra")]
AS_ROOT = [
    lambda: built_with("dra", "pod-metrics"),
    lambda: built_with("pod-metrics", "dra"),
    lambda: chart("allocation: dra\nmetrics: {pods: true}"),
]


@pytest.mark.parametrize("render", PLAIN, ids=["kustomize", "chart"])
def test_user_65534_keeps_claims_and_writes_specs(
    render: Callable[[], list[Object]], folders: dict[str, Path]
) -> None:
    found = render()
    assert plugin_of(found)["securityContext"]["runAsUser"] == USER
    for name, before in (("a", ""), ("b", "a"), ("c", "a,b")):
        hand_over(found, folders)  # again at each start of a pod, with what is there
        assert work(found, folders, name) == before
    for path, mode in ((CLAIMS, 0o2770), (CDI, 0o775)):
        state = folders[path].stat()
        assert (state.st_uid, state.st_gid, state.st_mode & 0o7777) == (0, OWN_GROUP, mode)


@pytest.mark.parametrize("render", AS_ROOT, ids=["after", "before", "chart"])
def test_another_user_goes_on_with_the_same_claims(
    render: Callable[[], list[Object]], folders: dict[str, Path]
) -> None:
    """A component that needs root is added to a cluster that runs, and removed again."""
    plain, as_root = built_with("dra"), render()
    assert plugin_of(as_root)["securityContext"]["runAsUser"] == 0
    for found, name, before in (
        (plain, "a", ""),
        (as_root, "b", "a"),
        (plain, "c", "a,b"),
        (as_root, "d", "a,b,c"),
    ):
        hand_over(found, folders)
        assert work(found, folders, name) == before


def test_without_the_group_nobody_gets_in(folders: dict[str, Path]) -> None:
    hand_over(built_with("dra"), folders)
    for path in folders.values():
        with pytest.raises(AssertionError, match="ermission denied"):
            as_user(USER, [USER], ["touch", str(path / "file")])
