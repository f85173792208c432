"""A node's GPUs, load and events as a scenario that a simulated node replays.

`observe` looks at any `hal.Backend` for a while, `scenario` makes a scenario of what was seen,
`text` writes it. Nothing here starts a simulation.
"""

from sim.study.recorder.observe import Recording, observe
from sim.study.recorder.text import as_yaml

__all__ = ["Recording", "as_yaml", "observe"]
