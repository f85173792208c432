"""A private mount namespace in which the files of a simulated node are in their real places.

Nothing outside of it changes. What cannot be mounted is left out and reported.
"""

from __future__ import annotations

import ctypes
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sim.node.kernel import WORK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_RDONLY: Final = 0x1
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 0x40000
_FRONTEND: Final = 195
_UVM: Final = 510
_CAPS: Final = 511
"""Major numbers of the driver's devices; those of UVM and capabilities are assigned on boot."""
_SYSTEM_LIBRARIES: Final = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")


class CannotMount(Exception):
    """No namespace can be made; the text says why and what to do."""


class Namespace:
    """Enters a mount namespace in this process; `missing` are the places that could not be made."""

    def __init__(self, kernel: Path) -> None:
        """`kernel` is the folder of the node's kernel files; raises `CannotMount`."""
        self._kernel = kernel.absolute()
        self._work = self._kernel / WORK
        self.missing: list[str] = []
        if not self._work.is_dir():
            raise CannotMount(f"there is no simulated node: {self._work} does not exist")
        _enter()
        try:
            _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
            _mount("tmpfs", str(self._work), "tmpfs", 0, "mode=0755")
        except OSError as error:
            raise CannotMount(f"this user may not mount: {error}") from error

    def show(self, library: Path, programs: Sequence[Path], gpu_minors: Sequence[int]) -> None:
        """Put everything into its place: kernel files, device nodes, library and programs."""
        kernel = self._kernel
        for source, target in (
            (kernel / "proc/driver", "/proc/driver"),
            (kernel / "proc/sys/kernel/random/boot_id", "/proc/sys/kernel/random/boot_id"),
            (kernel / "sys/bus/pci/devices", "/sys/bus/pci/devices"),
            (kernel / "sys/bus/pci/drivers", "/sys/bus/pci/drivers"),
            (kernel / "sys/module", "/sys/module"),
        ):
            self._try(target, lambda source=source, target=target: _bind(source, target))  # type: ignore[misc]
        self._try("/proc/modules", self._modules)
        self._try("/proc/devices", self._device_majors)
        self._try("/dev", lambda: self._devices(gpu_minors))
        libraries = next((one for one in _SYSTEM_LIBRARIES if Path(one).is_dir()), "/usr/lib")
        self._try(libraries, lambda: self._merge("lib", [library], libraries))
        self._try("/usr/bin", lambda: self._merge("bin", programs, "/usr/bin"))

    def _try(self, place: str, put: Callable[[], None]) -> None:
        try:
            put()
        except OSError as error:
            self.missing.append(f"{place}: {error.strerror or error}")

    def _modules(self) -> None:
        path = Path("/proc/modules")
        own = [f"{name} 4096 0 - Live 0x0000000000000000\n" for name in ("nvidia_uvm", "nvidia")]
        self._replace(path, "".join(own) + path.read_text())

    def _device_majors(self) -> None:
        path = Path("/proc/devices")
        text = path.read_text()
        own = f"{_FRONTEND} nvidia\n{_UVM} nvidia-uvm\n{_CAPS} nvidia-caps\n"
        head, block, rest = text.partition("\nBlock devices:")
        self._replace(path, head.rstrip("\n") + "\n" + own + block + rest)

    def _replace(self, path: Path, text: str) -> None:
        fresh = self._work / path.name
        fresh.write_text(text)
        _bind(fresh, str(path))

    def _devices(self, gpu_minors: Sequence[int]) -> None:
        """A /dev with what the host's has, and the driver's nodes."""
        fresh = self._work / "dev"
        fresh.mkdir()
        for entry in sorted(Path("/dev").iterdir()):
            if entry.name.startswith("nvidia"):
                continue
            target = fresh / entry.name
            if entry.is_symlink():
                target.symlink_to(entry.readlink())
                continue
            target.mkdir() if entry.is_dir() else target.touch()
            with suppress(OSError):
                _bind(entry, str(target))
        (fresh / "nvidia-caps").mkdir()
        for name, major, minor in self._nodes(gpu_minors):
            _node(fresh / name, major, minor)
        _bind(fresh, "/dev")

    def _nodes(self, gpu_minors: Sequence[int]) -> list[tuple[str, int, int]]:
        capabilities = self._kernel / "proc/driver/nvidia/capabilities"
        minors = sorted(
            int(path.read_text().split()[1]) for path in capabilities.rglob("*") if path.is_file()
        )
        return [
            *((f"nvidia{minor}", _FRONTEND, minor) for minor in gpu_minors),
            ("nvidiactl", _FRONTEND, 255),
            ("nvidia-modeset", _FRONTEND, 254),
            ("nvidia-uvm", _UVM, 0),
            ("nvidia-uvm-tools", _UVM, 1),
            *((f"nvidia-caps/nvidia-cap{minor}", _CAPS, minor) for minor in minors),
        ]

    def _merge(self, name: str, files: Sequence[Path], target: str) -> None:
        """These files in a folder of the system, which is then read-only."""
        own = self._work / name
        own.mkdir()
        for file in files:
            copy = own / file.name
            copy.write_bytes(file.read_bytes())
            copy.chmod(stat.S_IMODE(file.stat().st_mode))
        _mount("overlay", target, "overlay", _MS_RDONLY, f"lowerdir={own}:{target}")


def _node(path: Path, major: int, minor: int) -> None:
    """A device node; where that is not allowed, or would reach a real driver, an empty file."""
    if not _is_taken(major):
        with suppress(OSError):
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
            path.chmod(0o666)
            return
    path.touch()


def _is_taken(major: int) -> bool:
    """True if a driver of the host has this major number."""
    return Path(f"/sys/dev/char/{major}:0").exists() or Path(f"/sys/dev/char/{major}:255").exists()


def _enter() -> None:
    """A mount namespace; without privileges, inside a user namespace in which we are root."""
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_CLONE_NEWNS)
    except PermissionError:
        try:
            _unshare(_CLONE_NEWUSER | _CLONE_NEWNS)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        except OSError as error:
            raise CannotMount(
                f"a private mount namespace is not permitted here: {error.strerror}. Run as root, "
                "allow user namespaces (sysctl kernel.unprivileged_userns_clone, "
                "user.max_user_namespaces), or leave --mount out"
            ) from error


def _unshare(flags: int) -> None:
    _check(_libc().unshare(flags), "unshare")


def _bind(source: Path, target: str) -> None:
    _mount(str(source), target, None, _MS_BIND | _MS_REC)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    done = _libc().mount(
        source.encode(),
        target.encode(),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(done, target)


def _check(returned: int, doing: str) -> None:
    if returned:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), doing)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
