"""The Xid catalogue: what an Xid code means, how far it reaches, and the action.

Source: NVIDIA's Xid catalogue for Ampere and newer GPUs (docs.nvidia.com/deploy/xid-errors, sheet
"Catalog", October 2025): code, short meaning and immediate action. `XidScope` is this project's
reading of the action. A code that is not listed is one that NVIDIA marks as unused; its action is
to contact support. The health machine decides what follows from an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class XidAction(Enum):
    IGNORE = "ignore"
    RESTART_APP = "restart-app"
    FOLLOW_COMPANION = "follow-companion"
    """Appears together with the Xid that matters (45)."""
    RECOVERY_ACTION_CHANGED = "recovery-action-changed"
    """The driver's recovery action changed (154): the probe reports it."""
    RESET_GPU = "reset-gpu"
    ECC_WORKFLOW = "ecc-workflow"
    """Double-bit ECC error (48): drain and reset unless its companion Xid differs."""
    NVLINK_WORKFLOW = "nvlink-workflow"
    REBOOT_NODE = "reboot-node"
    RESTART_VM = "restart-vm"
    CHECK_MECHANICALS = "check-mechanicals"
    UPDATE_SOFTWARE = "update-software"
    CHECK_UVM = "check-uvm"
    CONTACT_SUPPORT = "contact-support"
    UNSPECIFIED = "unspecified"
    """Listed by NVIDIA without an action."""

    @property
    def application_error(self) -> bool:
        """True if the GPU itself stays usable: at most one process was affected."""
        return self in _APPLICATION_ACTIONS


_APPLICATION_ACTIONS = frozenset(
    {
        XidAction.IGNORE,
        XidAction.RESTART_APP,
        XidAction.FOLLOW_COMPANION,
        XidAction.RECOVERY_ACTION_CHANGED,
    }
)


class XidScope(Enum):
    """What an Xid takes down."""

    NONE = "none"
    PROCESS = "process"
    GPU = "gpu"
    NODE = "node"
    META = "meta"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Xid:
    code: int
    meaning: str
    action: XidAction
    scope: XidScope


def lookup_xid(code: int) -> Xid:
    """The catalogue's entry for `code`; an unlisted code is unused: contact support."""
    return XID_CATALOGUE.get(code) or Xid(
        code, "Unused code", XidAction.CONTACT_SUPPORT, XidScope.UNKNOWN
    )


_ROWS: tuple[tuple[int, str, str, str], ...] = (
    (8, "GPU stopped processing", "restart-app", "process"),
    (11, "Invalid or corrupted push buffer stream", "restart-app", "process"),
    (13, "Graphics Engine Exception", "restart-app", "process"),
    (14, "Unused code", "ignore", "none"),
    (25, "Invalid or illegal push buffer stream", "restart-app", "process"),
    (31, "GPU memory page fault", "restart-app", "process"),
    (32, "Invalid or corrupted push buffer stream", "restart-app", "process"),
    (37, "Driver firmware error", "ignore", "none"),
    (38, "Driver firmware error", "ignore", "none"),
    (39, "Copy Engine Exception", "restart-app", "process"),
    (40, "Copy Engine Exception", "restart-app", "process"),
    (41, "Copy Engine Exception", "restart-app", "process"),
    (43, "GPU stopped processing", "ignore", "none"),
    (44, "Graphics Engine fault during context switch", "ignore", "none"),
    (45, "Preemptive channel removal after another error", "follow-companion", "process"),
    (46, "GPU stopped processing", "reset-gpu", "gpu"),
    (48, "Double Bit ECC Error", "ecc-workflow", "gpu"),
    (54, "Auxiliary power not connected", "check-mechanicals", "node"),
    (60, "Video processor exception", "restart-app", "process"),
    (62, "Internal micro-controller halt", "reset-gpu", "gpu"),
    (63, "GPU memory remapping event", "ignore", "none"),
    (64, "GPU memory remapping failure", "reset-gpu", "gpu"),
    (66, "Illegal access by driver", "ignore", "none"),
    (67, "Illegal access by driver", "ignore", "none"),
    (68, "NVDEC0 Exception", "restart-app", "process"),
    (69, "Graphics Engine class error", "restart-app", "process"),
    (70, "Copy engine 3 error", "restart-app", "process"),
    (71, "Copy engine 4 error", "restart-app", "process"),
    (72, "Copy engine 5 error", "restart-app", "process"),
    (74, "NVLink Error", "nvlink-workflow", "gpu"),
    (75, "Copy engine 6 error", "restart-app", "process"),
    (76, "Copy engine 7 error", "restart-app", "process"),
    (77, "Copy engine 8 error", "restart-app", "process"),
    (78, "vGPU Start Error", "update-software", "node"),
    (79, "GPU has fallen off the bus", "reboot-node", "node"),
    (80, "Corrupted data sent to GPU", "restart-app", "process"),
    (82, "NVJPG0 Error", "restart-app", "process"),
    (83, "NVDEC1 Error", "restart-app", "process"),
    (84, "NVDEC2 Error", "restart-app", "process"),
    (85, "Copy engine 9 error", "restart-app", "process"),
    (86, "OFA Exception", "restart-app", "process"),
    (88, "NVDEC3 Error", "restart-app", "process"),
    (89, "NVDEC4 Error", "restart-app", "process"),
    (92, "High single-bit ECC error rate", "ignore", "none"),
    (93, "Non-fatal violation of provisioned InfoROM wear limit", "ignore", "none"),
    (94, "Contained memory error", "restart-app", "process"),
    (95, "Uncontained memory error", "reset-gpu", "gpu"),
    (96, "NVDEC5 Error", "restart-app", "process"),
    (97, "NVDEC6 Error", "restart-app", "process"),
    (98, "NVDEC7 Error", "restart-app", "process"),
    (99, "NVJPG1 Error", "restart-app", "process"),
    (100, "NVJPG2 Error", "restart-app", "process"),
    (101, "NVJPG3 Error", "restart-app", "process"),
    (102, "NVJPG4 Error", "restart-app", "process"),
    (103, "NVJPG5 Error", "restart-app", "process"),
    (104, "NVJPG6 Error", "restart-app", "process"),
    (105, "NVJPG7 Error", "restart-app", "process"),
    (106, "SMBPBI Test Message", "ignore", "none"),
    (107, "SMBPBI Test Message Silent", "ignore", "none"),
    (108, "Unused code", "ignore", "none"),
    (109, "Context Switch Timeout Error", "reset-gpu", "gpu"),
    (110, "Security Fault Error", "reset-gpu", "gpu"),
    (119, "GSP RPC Timeout", "reset-gpu", "gpu"),
    (120, "GSP Error", "reset-gpu", "gpu"),
    (121, "C2C Error", "ignore", "none"),
    (126, "Copy engine 10 error", "restart-app", "process"),
    (127, "Copy engine 11 error", "restart-app", "process"),
    (128, "Copy engine 12 error", "restart-app", "process"),
    (129, "Copy engine 13 error", "restart-app", "process"),
    (130, "Copy engine 14 error", "restart-app", "process"),
    (131, "Copy engine 15 error", "restart-app", "process"),
    (132, "Copy engine 16 error", "restart-app", "process"),
    (133, "Copy engine 17 error", "restart-app", "process"),
    (134, "Copy engine 18 error", "restart-app", "process"),
    (135, "Copy engine 19 error", "restart-app", "process"),
    (136, "Link Training Failed", "reset-gpu", "gpu"),
    (137, "NVLink Privilege Error", "ignore", "none"),
    (139, "OFA1 Error", "restart-app", "process"),
    (140, "ECC Unrecovered Error", "reset-gpu", "gpu"),
    (141, "CUDA Fast Path Error", "ignore", "none"),
    (142, "NVENC3 Error", "contact-support", "unknown"),
    (143, "GPU Initialization Error", "reset-gpu", "gpu"),
    (144, "NVLink: SAW Error", "nvlink-workflow", "gpu"),
    (145, "NVLink: RLW Error", "nvlink-workflow", "gpu"),
    (146, "NVLink: TLW Error", "nvlink-workflow", "gpu"),
    (147, "NVLink: TREX Error", "nvlink-workflow", "gpu"),
    (148, "NVLink: NVLPW_CTRL Error", "nvlink-workflow", "gpu"),
    (149, "NVLink: NETIR Error", "nvlink-workflow", "gpu"),
    (150, "NVLink: MSE Error", "nvlink-workflow", "gpu"),
    (151, "Key rotation Error", "restart-vm", "node"),
    (152, "DLA SMMU Error", "ignore", "none"),
    (153, "DLA timeout Error", "ignore", "none"),
    (154, "GPU Recovery Action Changed", "recovery-action-changed", "meta"),
    (155, "NVLink: SW Defined Error", "reset-gpu", "gpu"),
    (156, "Resource Retirement Event", "reset-gpu", "gpu"),
    (157, "Resource Retirement Failure", "ignore", "none"),
    (158, "GPU Fatal Timeout", "reset-gpu", "gpu"),
    (159, "CHI Non-Data Error", "check-uvm", "unknown"),
    (160, "Channel Retirement Event", "ignore", "none"),
    (161, "Channel Retirement Failure", "ignore", "none"),
    (162, "Power smoothing circuitry engaged again", "unspecified", "unknown"),
    (163, "Power smoothing circuitry disengaged", "unspecified", "unknown"),
    (164, "Power smoothing circuitry near end of life", "unspecified", "unknown"),
    (165, "Power smoothing circuitry worn out", "unspecified", "unknown"),
    (166, "Traffic before the link was set up for encryption", "unspecified", "unknown"),
    (167, "PCIe fatal timeout", "unspecified", "unknown"),
    (168, "Errors in the write-protected region", "unspecified", "unknown"),
    (169, "Internal micro-controller halt", "unspecified", "unknown"),
    (170, "Interrupt in confidential-computing mode", "unspecified", "unknown"),
    (171, "Uncorrectable DRAM error (detail of Xid 48)", "unspecified", "unknown"),
    (172, "Uncorrectable SRAM error (detail of Xid 48)", "unspecified", "unknown"),
)

XID_CATALOGUE: Mapping[int, Xid] = MappingProxyType(
    {
        code: Xid(code, meaning, XidAction(action), XidScope(scope))
        for code, meaning, action, scope in _ROWS
    }
)
