"""What models say of prepared cases, each case put to models that had not seen it; kept in files beside the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_med.bundle import BundleInfo
from unet_med.data import CachedCase, PreparedCases, Progress
from unet_med.errors import InputRefusedError, UnetMedError
from unet_med.identity import case_tag
from unet_med.manifest import ManifestCase
from unet_med.training.distributed import Team

logger = logging.getLogger(__name__)

Models = tuple[BundleInfo, ...]
Write = Callable[[ManifestCase, Path], None]
"""Writes into a file what some models say of a case."""


def unaware_of(case: ManifestCase, models: Sequence[BundleInfo]) -> Models:
    """Returns the models that were not trained on a case; one that does not say what it was trained on is not among."""
    found = []
    for model in models:
        known = (model.meta.get("training") or {}).get("case_sha256")
        if known and case.sha256["image"] not in known:
            found.append(model)
    return tuple(found)


@dataclass(frozen=True)
class Opinions:
    """Where models are asked, and by whom.

    Attributes:
        folder: Receives a file for each case.
        team: Each process does its share.
        progress: Wraps the cases to show how far it is.
    """

    folder: Path
    team: Team
    progress: Progress

    def of(
        self,
        prepared: PreparedCases,
        cases: Sequence[ManifestCase],
        asked: Callable[[ManifestCase], Models],
        opened: Callable[[Models], Write],
        doing: str,
    ) -> tuple[dict[str, Path], dict[str, UnetMedError]]:
        """Writes a file for each prepared case; what is there already is used again.

        Args:
            prepared: The cases.
            cases: The same in the manifest.
            asked: Says which models a case is put to.
            opened: Loads models.
            doing: What is done, for people.

        Returns:
            The file of each case by its id, and those that the models cannot take.

        Raises:
            MachineError: if memory or disk is full.
        """
        known = {case.id: case for case in cases}
        models = {case.id: asked(known[case.id]) for case in prepared.cases}
        files = {case.id: self._file_of(case, models[case.id]) for case in prepared.cases}
        refused: list[tuple[str, UnetMedError]] = []
        mine = [case.id for case in self.team.deal(prepared.cases) if not files[case.id].exists()]
        for chosen in dict.fromkeys(models[name] for name in mine):
            write = opened(chosen)
            for name in self.progress([name for name in mine if models[name] == chosen], doing):
                try:
                    write(known[name], files[name])
                except InputRefusedError as error:
                    logger.warning("%s is left out: %s", case_tag(name), error.what)
                    refused.append((name, error))
        return files, dict(pair for some in self.team.gather(refused) for pair in some)

    def _file_of(self, case: CachedCase, models: Models) -> Path:
        """Other models or another grid make another file."""
        shas = "".join(model.sha256 for model in models)
        return self.folder / f"{case.folder.name}-{hashlib.sha256(shas.encode()).hexdigest()[:12]}.npy"
