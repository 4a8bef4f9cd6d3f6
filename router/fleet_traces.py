"""Opens the fleet's recent traces (`trace.fleet`), in the Redis that the fleet shares; or not at all."""

from __future__ import annotations

import socket
from collections.abc import Callable

from router.fleet import fleet_url
from router.redis_link import RedisLink
from router.settings import Settings
from router.trace.fleet import DEADLINE_S, FleetTraces

LINK = "redis_fleet_traces"  # the name of its figures


def open_fleet_traces(settings: Settings, observe: Callable[[bool, str], None]) -> FleetTraces | None:
    """The sink, over a link of its own; None where it is off or no Redis is shared.

    `observe` is told whether Redis answers, see `RedisLink`. Connects to nothing. Raises SettingsError.
    """
    url = None if settings.fleet_traces == "off" else fleet_url(settings)
    if url is None:
        return None
    link = RedisLink(url, deadline_s=DEADLINE_S, give_up_s=2 * DEADLINE_S, most_connections=2, observe=observe)
    return FleetTraces(link, pod_name())


def pod_name() -> str:
    """This router's name among others: that of its host, which in Kubernetes is the pod's."""
    return socket.gethostname()[:64]
