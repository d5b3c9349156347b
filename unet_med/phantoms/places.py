"""Where a phantom data set lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class PhantomSet:
    """Where a phantom data set lies.

    Attributes:
        folder: Holds ``images/``, ``labels/`` and ``unlabelled/``.
        images: One series folder or picture for each labelled case.
        labels: One label file for each labelled case, of the same stem.
        unlabelled: Images for prediction.
        truth: The labels of the unlabelled images, of the same stem.
        label_names: Name to value of each label.
        tracks: Of movies: the true tracks of each unlabelled one, a folder as in the Cell Tracking Challenge.
    """

    folder: Path
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    unlabelled: tuple[Path, ...]
    truth: tuple[Path, ...]
    label_names: Mapping[str, int] = field(default_factory=dict)
    tracks: tuple[Path, ...] = ()

    def pairs(self) -> Iterator[tuple[Path, Path]]:
        """Yields image and label of every case, the labelled ones first."""
        yield from zip(self.images + self.unlabelled, self.labels + self.truth, strict=True)


def places(
    folder: Path, truth: Path | None, names: Sequence[str], labelled: int, suffixes: tuple[str, str]
) -> PhantomSet:
    """Returns where the images and labels of these cases lie; the first ``labelled`` ones are for training."""
    of_image, of_label = suffixes
    training, others = names[:labelled], names[labelled:]
    return PhantomSet(
        folder,
        images=tuple(folder / "images" / f"{name}{of_image}" for name in training),
        labels=tuple(folder / "labels" / f"{name}{of_label}" for name in training),
        unlabelled=tuple(folder / "unlabelled" / f"{name}{of_image}" for name in others),
        truth=tuple((truth or folder / "truth") / f"{name}{of_label}" for name in others),
    )
