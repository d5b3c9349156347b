"""On which CPU a benchmark ran, and its results as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def processor() -> str:
    """The CPU's name and which of its units matter for matrix products."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return "unknown CPU"
    lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").split("\n\n")[0].splitlines())
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    units = [unit for unit in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if unit in flags]
    return f"{fields.get('model name', 'unknown CPU')} ({', '.join(units)})"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all columns but the first are aligned to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
