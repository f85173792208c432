"""Which of the known GPU models a real GPU is closest to."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from sim.gpu.profiles import load_profile, model_names

if TYPE_CHECKING:
    from hal import Gpu
    from sim.gpu.profiles import Profile

_WORD = re.compile(r"[a-z]+\d+[a-z]*|\d+gb|[a-z]+|\d+")
_SAME_CAPABILITY = 0.5
_MEMORY_WEIGHT = 0.3


def nearest_model(gpu: Gpu) -> str:
    """The model whose product name, compute capability and memory are closest to the GPU's."""
    return max(model_names(), key=lambda name: _likeness(gpu, load_profile(name)))


def _likeness(gpu: Gpu, profile: Profile) -> float:
    """Higher is closer: a name that is the same beats everything else."""
    if gpu.product == profile.product:
        return math.inf if gpu.memory_bytes == profile.memory_bytes else 1e6 - _apart(gpu, profile)
    own, other = (set(_WORD.findall(text.lower())) for text in (gpu.product, profile.product))
    words = len(own & other) / max(1, len(own | other))
    same = gpu.compute_capability == profile.compute_capability
    return words + _SAME_CAPABILITY * same - _MEMORY_WEIGHT * _apart(gpu, profile)


def _apart(gpu: Gpu, profile: Profile) -> float:
    """How far the sizes of memory are apart, in powers of two."""
    if not gpu.memory_bytes:
        return 0.0
    return abs(math.log2(gpu.memory_bytes / profile.memory_bytes))
