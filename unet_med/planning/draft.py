"""A pipeline that is being resolved: what is given stays, what is ``auto`` gets a value and a reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from unet_med.config import PipelineConfig
from unet_med.manifest import Manifest
from unet_med.planning.fingerprint import Fingerprint
from unet_med.planning.memory import Device

GIVEN = "given in the pipeline file"


@dataclass(frozen=True)
class Draft:
    """What a plan is made from, and what is settled so far.

    Attributes:
        config: The pipeline as it was given.
        manifest: The data set.
        measured: What its training cases are like.
        device: Where training is to run.
        memory_gb: Memory that it may take; ``None`` for what is usual there.
        values: Dotted key -> value.
        reasons: Dotted key -> why it has this value.
    """

    config: PipelineConfig
    manifest: Manifest
    measured: Fingerprint
    device: Device
    memory_gb: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def settle(self, key: str, value: Any, reason: str) -> Any:
        """Takes ``value`` where the pipeline says ``auto``; else keeps what is given. Returns what holds."""
        given = self.given(key)
        if given is not None:
            value, reason = given[0], GIVEN
        self.values[key] = value
        self.reasons[key] = reason
        return value

    def given(self, key: str) -> tuple[Any] | None:
        """Returns the value in the pipeline as a tuple of one; ``None`` for ``auto``."""
        value: Any = self.config
        for part in key.split("."):
            value = getattr(value, part)
        return None if isinstance(value, str) and value == "auto" else (value,)

    def changes(self) -> dict[str, Any]:
        """Returns the settled values that the pipeline did not give."""
        return {key: value for key, value in self.values.items() if self.reasons.get(key) != GIVEN}


def times(values: Iterable[float]) -> str:
    """Returns sizes as people write them: ``40 x 56 x 40``."""
    return " x ".join(f"{value:g}" for value in values)
