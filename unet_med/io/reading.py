"""What all readers of files share: ids and refusals, channels, regions and frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_med.errors import InputRefusedError, MachineError
from unet_med.geometry import Geometry
from unet_med.identity import safe_name, stem_of
from unet_med.io.source import SourceRef
from unet_med.volume import Region

COPY_FILE_AGAIN = "copy the file again from its origin"


def provisional_id(path: Path) -> str:
    """Returns the id of the source in this file; discovery makes it unique."""
    return safe_name(stem_of(path))


def refused_ref(
    path: Path, kind: str, error: InputRefusedError, *, axes: str = "", shape: Sequence[int] = ()
) -> SourceRef:
    """Returns the unusable source that stands for a file which is refused."""
    return SourceRef(
        provisional_id(path), kind, (path,), axes, tuple(int(n) for n in shape), None, usable=False, reason=error.reason
    )


@contextmanager
def refusing(what: str, where: str, remedy: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what a decoder raises on a damaged file into :class:`InputRefusedError`.

    The decoder's own text is left out: it may hold the file's path.
    """
    faults: tuple[type[Exception], ...] = (
        *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError, ArithmeticError, RuntimeError),
        *more,
    )
    try:
        yield
    except InputRefusedError:
        raise
    except MemoryError as error:
        raise MachineError(
            "the image does not fit into memory", where, "close other programs or use a machine with more memory"
        ) from error
    except faults as error:
        raise InputRefusedError(what, where, remedy) from error


def native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns real values in this machine's byte order; booleans become uint8 and half precision float32."""
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def native_dtype(dtype: np.dtype[Any]) -> str:
    """Returns the numpy name of what :func:`native` makes of this dtype."""
    return str(native(np.empty(0, dtype=dtype)).dtype)


def check_frame(frame: int, frames: int, where: str) -> None:
    """Raises InputRefusedError when there is no such frame."""
    if not 0 <= frame < frames:
        raise InputRefusedError(f"frame {frame} of {frames}", where, f"ask for frame 0 to {frames - 1}")


def whole(region: Region | None, geometry: Geometry) -> Region:
    """Returns ``region``, or the slices of the whole grid, with bounds filled in."""
    if region is None:
        return tuple(slice(0, n) for n in geometry.shape)
    return tuple(slice(*part.indices(n)[:2]) for part, n in zip(region, geometry.shape, strict=True))


@dataclass(frozen=True)
class FileSource:
    """What the sources of all file formats have in common: they are made of a :class:`SourceRef`, also when pickled."""

    ref: SourceRef

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ref,)

    def __post_init__(self) -> None:
        if not self.ref.usable or self.ref.geometry is None:
            raise InputRefusedError(self.ref.reason or "the image cannot be used", self.ref.id)

    @property
    def id(self) -> str:
        """Safe name of the source."""
        return self.ref.id

    @property
    def geometry(self) -> Geometry:
        """Grid of one frame."""
        if self.ref.geometry is None:
            raise InputRefusedError(self.ref.reason or "the image cannot be used", self.ref.id)
        return self.ref.geometry

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.ref.channels

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.ref.frames
