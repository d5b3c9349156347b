"""Pictures of the cases on which two runs differ most: the masks of both in the same planes.

Masks that an evaluation kept are read. A run keeps none: there the model that held the case out predicts it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_med.bundle import BundleInfo, load_bundles, read_bundle_info
from unet_med.errors import InputRefusedError, ModelError, UnetMedError
from unet_med.identity import case_tag
from unet_med.io.discover import restore_ref
from unet_med.io.label_images import label_on_image
from unet_med.labels import LabelMap
from unet_med.manifest import Manifest, ManifestCase
from unet_med.overlays import Picture, object_preview
from unet_med.overlays.changes import side_by_side
from unet_med.workflows.casefolder import output_name
from unet_med.workflows.evaluate import MASKS
from unet_med.workflows.progress import track
from unet_med.workflows.thumbnail import may_carry_a_name

if TYPE_CHECKING:
    from unet_med.inference.predictor import Predictor

logger = logging.getLogger(__name__)

_ENDINGS = (".nii.gz", ".tif", ".ome.zarr")
"""Of masks that an evaluation wrote."""

LabelArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class CasePictures:
    """The masks of both runs on one case.

    Attributes:
        first: Of the first run, (rows, columns, 3) uint8; ``None``: there is none.
        second: Of the second run, of the same size.
        reason: Why there are none.
    """

    first: Picture | None = None
    second: Picture | None = None
    reason: str = ""


def draw_cases(manifest: Manifest, runs: Sequence[Path], cases: Sequence[str], device: str) -> dict[str, CasePictures]:
    """Draws cases of a manifest as two runs see them.

    Args:
        manifest: Has images and true labels.
        runs: Both run folders, or folders of evaluations.
        cases: Ids; those that the manifest does not list have a reason instead.
        device: Computes masks that nobody kept.

    Returns:
        Case id -> its pictures.
    """
    known = {case.id: case for case in (*manifest.training, *manifest.test)}
    sides = [_Masks(run, device) for run in runs]
    return {name: _drawn(known.get(name), manifest, sides) for name in track(list(cases), "drawing pictures")}


def _drawn(case: ManifestCase | None, manifest: Manifest, sides: Sequence[_Masks]) -> CasePictures:
    if case is None:
        return CasePictures(reason="the manifest does not list this case")
    if any(may_carry_a_name(source) for source in case.case.sources):
        return CasePictures(reason="not shown: text in the pixels may tell a name")
    try:
        first, second = (side.of(case) for side in sides)
        return CasePictures(*_pictures(case, manifest, first, second))
    except (UnetMedError, MemoryError) as error:
        logger.info("%s has no picture (%s)", case_tag(case.id), type(error).__name__)
        return CasePictures(reason=f"no picture: {error.what if isinstance(error, UnetMedError) else 'out of memory'}")


def _pictures(case: ManifestCase, manifest: Manifest, first: LabelArray, second: LabelArray) -> tuple[Picture, Picture]:
    frame = case.case.frames[0]
    volume, truth = case.case.read(frame), case.case.read_label(frame)
    place = volume.geometry
    labels = LabelMap.from_names(manifest.labels, ignored=manifest.ignore_label, objects=case.case.instances)
    if not case.case.instances:
        return side_by_side(volume.array, first, second, place.spacing_mm, labels, truth, place.orientation)
    true = truth if labels.ignored is None else np.where(truth == labels.ignored, 0, truth)
    drawn = [
        object_preview(volume.array, mask, place.spacing_mm, labels, truth=true, orientation=place.orientation)
        for mask in (first, second)
    ]
    return drawn[0], drawn[1]


# ---- masks ----------------------------------------------------------------------------------------------------------


@dataclass
class _Masks:
    """The masks of one run; a model is loaded when the first mask is wanted of it."""

    run: Path
    device: str
    _predictors: dict[Path, Predictor] = field(default_factory=dict)

    def of(self, case: ManifestCase) -> LabelArray:
        """Returns the mask of a case on its grid, (I, J[, K]) labels or numbers of objects.

        Raises:
            InputRefusedError: there is neither a mask nor a model, or one of them cannot be used.
            ModelError: the model does not fit.
        """
        folder = self.run if self.run.is_dir() else self.run.parent
        names = (folder / MASKS / f"{output_name(case.id)}{ending}" for ending in _ENDINGS)
        kept = next((path for path in names if path.exists()), None)
        if kept is not None:
            ref = restore_ref({"id": case.id}, [kept])
            return label_on_image(ref, case.case.sources[0], 0, case.id)
        return self._predicted(_unseeing(folder, case), case)

    def _predicted(self, info: BundleInfo, case: ManifestCase) -> LabelArray:
        from unet_med.inference.objects import find_objects
        from unet_med.inference.predictor import Predictor

        if info.folder not in self._predictors:
            self._predictors[info.folder] = Predictor(load_bundles(info.folder), self.device)
        predictor = self._predictors[info.folder]
        volume = case.case.read(case.case.frames[0])
        if predictor.objects is not None:
            return find_objects(predictor, volume).labels
        return predictor.predict(volume).labels


def _unseeing(folder: Path, case: ManifestCase) -> BundleInfo:
    """Returns the model of a run; of an ensemble the member that did not learn from this case."""
    with suppress(ModelError):
        info = read_bundle_info(str(folder))
        return next((one for one in info.members if case.sha256["image"] not in _learnt(one.meta)), info)
    raise InputRefusedError("the run has neither masks nor a model", case.id, "give the folder of the run")


def _learnt(meta: Mapping[str, Any]) -> frozenset[str]:
    return frozenset((meta.get("training") or {}).get("case_sha256") or ())
