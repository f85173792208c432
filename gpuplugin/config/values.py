"""How single values are spelled: Go booleans, Go durations, names, addresses.

The spellings are those of NVIDIA's plugin, so that its files and variables keep their meaning.
What a function does not allow is a ValueError that says what to write.
"""

from __future__ import annotations

import re

RESOURCE_PREFIX = "nvidia.com/"
MAX_RESOURCE_NAME = 63
MAX_PORT = 65535
MAX_NODE_NAME = 253
MAX_DRIVER_NAME = 63
DEFAULT_CDI_ROOT = "/var/run/cdi"
DEFAULT_DRIVER_NAME = "gpu.gpuplugin.dev"
XID_WORDS = frozenset({"all", "xids"})
"""Words for every Xid; `all` includes the checks of every other kind."""

BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
"""What Go's strconv.ParseBool reads."""
_MOST_SHOWN = 400
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:h|ms|m|us|µs|ns|s)", re.ASCII)
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_NO_BLANK = re.compile(r"\s*(?:- +)*([A-Za-z_][\w.-]*:)(?!//)[^\s:]")
_DEVICE_REFERENCE = re.compile(
    rf"\d+|\d+:\d+|GPU-{_UUID}|MIG-{_UUID}|MIG-GPU-{_UUID}/\d+/\d+", re.ASCII
)


def unfit(value: object, allowed: str) -> ValueError:
    """The error for a value that is not what is allowed, such as `must be a list`."""
    try:
        return ValueError(f"{allowed}, found {shortened(repr(value))}")
    except ValueError:  # Python writes no number of more than some thousand digits
        return ValueError(f"{allowed}, found a number that is too long")


def shortened(text: str) -> str:
    """A text as an error shows it: nobody reads a thousand characters of a wrong value."""
    half = _MOST_SHOWN // 2
    return text if len(text) <= _MOST_SHOWN else f"{text[:half]}...{text[-half:]}"


def hint(lines: list[str], wrong: int = 0) -> str:
    """The usual cause of what is wrong in one of the lines, if it is seen there; or nothing."""
    near = lines[max(0, wrong - 1) : wrong + 1]
    if any("{{" in one for one in near):
        return "; a template has to be rendered first, for example with 'helm template'"
    if any(one[: len(one) - len(one.lstrip())].count("\t") for one in near):
        return "; indent with blanks, not with tabs"
    key = next(filter(None, map(_NO_BLANK.match, near)), None)
    return f"; write a blank after the colon of {key[1]!r}" if key else ""


def parse_duration_s(text: str) -> float:
    """Seconds of a Go duration such as `1m30s` or `500ms`."""
    parts = _DURATION.findall(text)
    if not parts or "".join(parts) != text:
        raise unfit(text, "must be a duration such as 30s or 1m30s")
    total_s = 0.0
    for part in parts:
        number = part.rstrip("hmsuµn")
        total_s += float(number) * _UNITS_S[part[len(number) :]]
    return total_s


def full_resource_name(name: str) -> str:
    full = name if name.startswith(RESOURCE_PREFIX) else RESOURCE_PREFIX + name
    bare = full.removeprefix(RESOURCE_PREFIX)
    if "/" in bare:
        raise unfit(name, f"must have the prefix {RESOURCE_PREFIX} or none")
    if not _SUBDOMAIN.fullmatch(bare):
        raise unfit(name, "must be lower-case letters, digits, '-' and '.'")
    if len(full) > MAX_RESOURCE_NAME:
        raise ValueError(f"is {len(full)} characters long, the limit is {MAX_RESOURCE_NAME}")
    return full


def listen_address(text: str) -> str:
    """HOST:PORT; an IPv6 host is in brackets."""
    host, _, port = text.rpartition(":")
    if not _is_host(host) or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > MAX_PORT:
        raise unfit(text, "must be HOST:PORT such as 0.0.0.0:2112 or [::1]:2112")
    return text


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return re.fullmatch(r"[^\s:\[\]]+", text) is not None
    from ipaddress import IPv6Address  # rarely needed

    try:
        IPv6Address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return text.endswith("]")


def node_name(text: str) -> str:
    if len(text) > MAX_NODE_NAME or not _SUBDOMAIN.fullmatch(text):
        raise unfit(text, "must be the name of a node as kubectl get nodes has it")
    return text


def driver_name(text: str) -> str:
    """The name of a DRA driver, as resource.k8s.io wants it."""
    if not _SUBDOMAIN.fullmatch(text):
        raise unfit(text, f"must be lower-case letters, digits, '-' and '.': {DEFAULT_DRIVER_NAME}")
    if len(text) > MAX_DRIVER_NAME:
        raise ValueError(f"is {len(text)} characters long, the limit is {MAX_DRIVER_NAME}")
    return text


def device_reference(value: object) -> str:
    """A device as a configuration names it: index, MIG index `i:j`, or a UUID of either.

    UUIDs come back in lower case, as the driver writes them.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, str) and _DEVICE_REFERENCE.fullmatch(value):
        return re.sub(_UUID, lambda uuid: uuid[0].lower(), value)
    raise unfit(
        value,
        "names no device: an index (0), a MIG index (0:1), GPU-<uuid>, MIG-<uuid> or "
        "MIG-GPU-<uuid>/<gi>/<ci>",
    )


def parse_xids(text: str) -> tuple[list[int | str], list[str]]:
    """Xids of a comma list, `all` and `xids` among them in any case, and the tokens that are none.

    The format of DP_DISABLE_HEALTHCHECKS, in which a wrong token does not affect the others.
    """
    good: list[int | str] = []
    bad: list[str] = []
    for token in (part.strip().lower() for part in text.split(",")):
        if token in XID_WORDS:
            good.append(token)
        elif token.isascii() and token.isdecimal() and int(token) > 0:
            good.append(int(token))
        elif token:
            bad.append(token)
    return good, bad
