"""Whether a network is being recorded for another engine, rather than run."""

from __future__ import annotations

import torch


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` or ``torch.export`` records: then only plain operations, whatever the layout."""
    return bool(torch.jit.is_tracing()) or torch.compiler.is_exporting()  # type: ignore[attr-defined, no-untyped-call]
