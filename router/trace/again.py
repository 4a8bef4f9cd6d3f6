"""A trace decided again: its recorded facts out of the store, under the policies now in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from router.catalog.lookup import Catalog
from router.policy.compile import PolicySet
from router.policy.now import decided_now
from router.trace.recorded import find


def decide_again(
    shown: Mapping[str, Any], path: Path, policies: Callable[[], PolicySet], catalog: Catalog
) -> dict[str, Any] | None:
    """What the policies in force would do with a trace; None when it has left the store meanwhile.

    `shown` is the trace as the reader shows it, `path` the store. Raises TraceStoreError when it cannot be read.
    """
    found = find(path, shown["trace_id"], shown["request_id"])
    if found is None:
        return None
    seen, affinity = found
    return decided_now(seen, affinity, policies(), catalog)
