"""Labels remembered: a request that comes again is judged as it was, without reading it again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from router.seams import Classifier, Label
from router.wire.messages import MessagesRequest

_MOST = 4096  # labels; a few hundred bytes each
_MOST_BYTES = 64 * 1024  # of a body: a classifier reads only so much of a longer one, and hashing it costs as much


class RememberedLabels:
    """A classifier's labels by tenant and body, those not asked for longest forgotten first.

    A label is a function of the body, so a remembered one is the same. The tenant is part of what it is remembered by:
    how fast one is answered must not tell what another has asked.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._labels: OrderedDict[bytes, Label] = OrderedDict()

    def label(self, request: MessagesRequest, tenant: str) -> Label:
        """The label of a request. Raises what the classifier raises."""
        raw = request.raw
        if len(raw) > _MOST_BYTES:
            return self._classifier.label(request.body)
        who = tenant.encode()
        digest = hashlib.sha256(b"%d:%b" % (len(who), who))  # where processors do it, faster than any other
        digest.update(raw)
        key = digest.digest()
        found = self._labels.get(key)
        if found is not None:
            self._labels.move_to_end(key)
            return found
        found = self._labels[key] = self._classifier.label(request.body)
        if len(self._labels) > _MOST:
            self._labels.popitem(last=False)
        return found
