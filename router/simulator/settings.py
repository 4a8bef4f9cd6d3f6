"""The settings of one simulator."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from router.simulator.script import Script

Latency = Literal["real", "none"]


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """How a simulator behaves. `clock` gives seconds since 1970 and rules caches, batches and files."""

    latency: Latency = "none"
    seed: int = 0
    script: Script = field(default_factory=Script)
    clock: Callable[[], float] = time.time
    batch_item_s: float = 0.0  # seconds that one batch item takes; 0 with no latency
    batch_expires_s: float = 24 * 3600.0
