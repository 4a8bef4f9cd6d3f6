"""Where captured content goes, as the settings say."""

from __future__ import annotations

from pathlib import Path

from router.errors import SettingsError
from router.settings import Settings, capture_keep_s, capture_share
from router.trace.capture import Capture
from router.trace.capture_redact import read_rules
from router.trace.sqlite import path_of


def open_capture(settings: Settings) -> Capture | None:
    """What captures content; None where that is off and nothing is left from before. Raises SettingsError.

    A file from before is still opened while capture is off: what it holds must not outlive its time.
    """
    rules = read_rules(settings.capture_redact)
    share, trace_file = capture_share(settings), path_of(settings.traces)
    if settings.capture_file is not None:
        path = Path(settings.capture_file)
    elif trace_file is not None:
        path = trace_file.with_name(f"{trace_file.stem}-content.db")
    elif share:
        raise SettingsError(
            f"`capture` is `{settings.capture}` and there is no file for it",
            hint="name one with `capture_file`, or keep `traces` in a file",
        )
    else:
        return None
    if trace_file is not None and path.absolute() == trace_file.absolute():
        raise SettingsError("`capture_file` is the file of `traces`, expected a file of its own")
    if not share and not path.exists():
        return None
    return Capture(
        path,
        share=share,
        is_errors_only=settings.capture == "errors",
        max_bytes=settings.capture_max_kb * 1024,
        keep_s=capture_keep_s(settings),
        rules=rules,
    )
