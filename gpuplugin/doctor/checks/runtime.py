"""Checks of how devices reach containers: the runtime, CDI, and the strategy that fits them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuplugin.core.injection import CDI_VENDOR
from gpuplugin.doctor.verdict import Verdict, fail, found, skipped, warn, warned, well

if TYPE_CHECKING:
    from gpuplugin.doctor.facts import Facts, RuntimeConfig, ToolkitConfig
    from gpuplugin.doctor.verdict import Problem

CDI = frozenset({"cdi-cri", "cdi-annotations"})
BY_RUNTIME = frozenset({"envvar", "volume-mounts"})
"""Device list strategies that containerd or CRI-O carries out, and those of NVIDIA's runtime."""

CLAIM_KIND = "gpuplugin.dev/claim"
"""Of the specs of claims, which DRA writes."""
SIMULATED = "the node is simulated: its containers have no runtime"
_WITHOUT_CDI_BY_DEFAULT = 2
"""The version of containerd's configuration in 1.7, which 2.0 and later read as well."""
_CONFIGURE = "'nvidia-ctk runtime configure --runtime={}' and restart {} (on k3s: restart k3s)"
_TALOS_DEFAULT = "deploy/talos/default-runtime-until-1.13.yaml, or default-runtime-1.14.yaml"


def runtime(facts: Facts) -> Verdict:
    """The container runtime has NVIDIA's runtime, where it is needed."""
    if facts.simulated:
        return skipped(SIMULATED)
    runtimes = facts.runtime
    problems = [
        fail(f"{one.path} cannot be read: {one.problem}", one.path, "Correct it")
        for one in runtimes.configs
        if one.problem
    ]
    if problems:
        return found(problems, "")
    if not runtimes.configs:
        return skipped("no configuration of containerd or CRI-O is seen from here (--root)")
    problems = [problem for config in runtimes.configs if (problem := _of_runtime(facts, config))]
    handlers = sorted({name for config in runtimes.configs for name in nvidia_handlers(config)})
    return found(problems, f"NVIDIA's handlers: {', '.join(handlers) or 'none, and none needed'}")


def _of_runtime(facts: Facts, config: RuntimeConfig) -> Problem | None:
    strategies = facts.strategies
    configure = _CONFIGURE.format(config.program, config.program)
    install = f"Install NVIDIA's container toolkit, then {configure}; or use cdi-cri"
    by_default = f"{configure} with --set-as-default"
    if facts.talos is not None:
        install, by_default = "See the check talos", _TALOS_DEFAULT
    nvidia = nvidia_handlers(config)
    if not strategies & BY_RUNTIME:
        return None
    if not nvidia:
        names = " and ".join(sorted(strategies & BY_RUNTIME))
        return fail(
            f"{config.program} has no handler with NVIDIA's runtime, which the device list "
            f"strategy {names} needs",
            config.path,
            install,
        )
    if config.default_handler not in nvidia:
        return warn(
            f"NVIDIA's runtime is the handler {nvidia[0]}, not the default",
            config.path,
            f"Give every pod with GPUs, the plugin's too, runtimeClassName: {nvidia[0]}, with "
            f"a RuntimeClass of that handler; or make it the default ({by_default}); or "
            "use cdi-cri, which needs neither",
        )
    return None


def nvidia_handlers(config: RuntimeConfig) -> list[str]:
    return [name for name, program in config.handlers.items() if "nvidia" in (program or name)]


def list_strategy(facts: Facts) -> Verdict:
    """The runtime accepts the device list strategy."""
    if facts.simulated:
        return skipped(SIMULATED)
    strategies = facts.strategies
    toolkit = facts.runtime.toolkit
    where = toolkit.path if toolkit else facts.config.source
    problems: list[Problem] = []
    if not strategies:
        problems.append(
            fail(
                "no device list strategy: containers get no device",
                facts.config.source,
                "Set DEVICE_LIST_STRATEGY=envvar, or cdi-cri",
            )
        )
    if "envvar" in strategies and toolkit is not None:
        problems.append(_envvar(toolkit, where))
    if "volume-mounts" in strategies and toolkit is not None and not toolkit.mounts:
        problems.append(
            fail(
                "strategy volume-mounts, and the runtime ignores mounts: containers get no GPU",
                where,
                "Set accept-nvidia-visible-devices-as-volume-mounts = true there",
            )
        )
    if CDI & set(strategies):
        problems += _cdi_support(facts)
    seen = "" if toolkit else "; what NVIDIA's runtime accepts is not seen from here"
    return found(problems, f"{', '.join(sorted(strategies))}{seen}")


def _envvar(toolkit: ToolkitConfig, where: str) -> Problem:
    if not toolkit.unprivileged_variable:
        return fail(
            "strategy envvar, and the runtime ignores NVIDIA_VISIBLE_DEVICES in unprivileged "
            "containers: they get no GPU",
            where,
            "Use cdi-cri or volume-mounts, or set "
            "accept-nvidia-visible-devices-envvar-when-unprivileged = true there",
        )
    return warn(
        "strategy envvar: a container that requests no GPU may still see all of them",
        where,
        "Use cdi-cri; or volume-mounts, with accept-nvidia-visible-devices-as-volume-mounts = true "
        "and accept-nvidia-visible-devices-envvar-when-unprivileged = false",
    )


def _cdi_support(facts: Facts) -> list[Problem]:
    folder = str(facts.settings.daemon.cdi_root)
    problems = []
    for config in facts.runtime.configs:
        if config.cdi is False:
            problems.append(
                fail(
                    f"the strategy is CDI, and {config.program} has CDI switched off",
                    config.path,
                    f"Set enable_cdi = true in its CRI section and restart {config.program}",
                )
            )
        elif config.cdi is None and config.version == _WITHOUT_CDI_BY_DEFAULT:
            problems.append(
                warn(
                    f"the strategy is CDI, which {config.program} before 2.0 has switched off "
                    "unless its configuration switches it on",
                    config.path,
                    "Set enable_cdi = true in its CRI section and restart it, or see "
                    f"'{config.program} --version'",
                )
            )
        if config.cdi_folders and _plain(folder) not in {_plain(f) for f in config.cdi_folders}:
            problems.append(
                fail(
                    f"CDI specs go to {folder}, {config.program} looks in "
                    f"{', '.join(config.cdi_folders)}",
                    config.path,
                    "Set --cdi-root (GPUPLUGIN_CDI_ROOT) to one of them",
                )
            )
    return problems


def _plain(folder: str) -> str:
    return folder.rstrip("/").replace("/var/run/", "/run/")


def cdi_specs(facts: Facts) -> Verdict:
    """The plugin's CDI specs are written and name existing files."""
    if facts.simulated:
        return skipped(SIMULATED)
    strategies = facts.strategies
    folder = str(facts.settings.daemon.cdi_root)
    problems = [
        warn(
            f"{spec.path} cannot be used: {spec.problem}",
            spec.path,
            "Remove it: a runtime may refuse all CDI devices for it",
        )
        for spec in facts.runtime.specs
        if spec.problem
    ]
    kinds = (f"{CDI_VENDOR}/", CLAIM_KIND)
    ours = [spec for spec in facts.runtime.specs if spec.kind.startswith(kinds)]
    if not strategies & CDI:
        return found(problems, "not used") if problems else skipped("the strategy is not CDI")
    problems += [
        fail(
            f"{spec.path} names files that do not exist: {', '.join(spec.missing[:3])}",
            spec.path,
            "The driver changed: restart the plugin, which writes the specs again",
        )
        for spec in ours
        if spec.missing
    ]
    if facts.dra:
        claims = sum(spec.kind == CLAIM_KIND for spec in ours)
        return found(problems, f"{claims} claims have a spec in {folder}")
    gpus = [spec for spec in ours if spec.kind == f"{CDI_VENDOR}/gpu"]
    if not gpus and facts.plugin.source:
        problems.append(
            fail(
                f"the plugin runs with CDI, and there is no spec of its GPUs in {folder}",
                folder,
                "Mount the host's folder into the plugin's container, writable by user "
                f"{facts.plugin_uid}; the part cdi of /ready has the reason",
            )
        )
    elif not gpus:
        cdi_folder = facts.runtime.cdi_folder
        if cdi_folder is not None and not cdi_folder.permits(facts.plugin_uid, 3):
            problems.append(
                fail(
                    f"user {facts.plugin_uid} may not write CDI specs in {folder}",
                    folder,
                    "Let an init container hand the folder over, or run the plugin as root",
                )
            )
        return found(problems, "none yet: the plugin writes them")
    return found(problems, f"{sum(len(spec.devices) for spec in gpus)} devices in {folder}")


def cgroup_driver(facts: Facts) -> Verdict:
    """'systemctl daemon-reload' does not take GPUs from running containers."""
    if facts.simulated:
        return skipped(SIMULATED)
    systemd = any(config.systemd_cgroup for config in facts.runtime.configs)
    systemd |= facts.kubelet.cgroup_driver == "systemd"
    plugin = facts.settings.flags.plugin
    if not systemd:
        return skipped("no sign of the systemd cgroup driver")
    if CDI & facts.strategies or plugin.pass_device_specs:
        return well("the runtime knows the device nodes, so systemd keeps them")
    if facts.driver.char_links:
        return well("/dev/char has links to the device nodes")
    return warned(
        "with the systemd cgroup driver, 'systemctl daemon-reload' takes GPUs from running "
        "containers ('Failed to initialize NVML: Unknown Error')",
        "/dev/char",
        "Use cdi-cri or --pass-device-specs, so that the runtime knows the nodes; and make "
        "the links: 'nvidia-ctk system create-dev-char-symlinks --create-all' at each boot",
    )
