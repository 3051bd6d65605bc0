"""How long a network takes to start."""

from __future__ import annotations

from pathlib import Path

_TIMES = 5


def decoding_ms(folder: Path) -> float:
    """Milliseconds of NAME_init of an artifact: the fastest of a few. Raises OptionError where it does not run here."""
    from irc.backends.artifact.load import load_artifact

    with load_artifact(folder) as network:
        return min(network.init_seconds() for _ in range(_TIMES)) * 1000
