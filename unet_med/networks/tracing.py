"""Whether a network is being recorded for another engine, rather than run."""

from __future__ import annotations

import torch


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` records: then only plain operations, whatever the layout and the shape."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
