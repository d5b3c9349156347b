"""The patients of the 3-D phantoms: an invented torso with two organs, as formulas in patient millimetres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ORGANS: Mapping[str, int] = {"background": 0, "liver": 1, "kidney": 2}
"""Labels of the 3-D phantoms."""

_AIR_HU, _SOFT_HU, _ORGAN_HU, _BONE_HU = -1000.0, 10.0, 75.0, 320.0


@dataclass(frozen=True)
class Torso:
    """One invented patient: sizes in mm, positions relative to ``centre_mm``, axes R, A, S.

    Attributes:
        centre_mm: Middle of the body, RAS+ mm.
        body_mm: Half axes of the elliptic body in R and A.
        organ_centres_mm: (2, 3) centres of liver and kidney.
        organ_radii_mm: (2, 3) half axes of liver and kidney.
        organ_tilts: (2, 3, 3) rotations of the two organs.
        bend_mm: (2, 3) amplitude of the sine that deforms each organ along each axis.
        bend_phase: (2, 3) phase of that sine.
        bowel: (n, 4) centre and radius of bowel loops, as bright as the organs, with gas inside.
        field_phase: (4, 3) phases of the slow unevenness of soft tissue.
    """

    centre_mm: FloatArray
    body_mm: FloatArray
    organ_centres_mm: FloatArray
    organ_radii_mm: FloatArray
    organ_tilts: FloatArray
    bend_mm: FloatArray
    bend_phase: FloatArray
    bowel: FloatArray
    field_phase: FloatArray

    def organs(self, points_mm: FloatArray) -> npt.NDArray[np.uint8]:
        """Returns the label (0 none, 1 liver, 2 kidney) at points (..., 3) in RAS+ mm."""
        labels = np.zeros(points_mm.shape[:-1], dtype=np.uint8)
        for index in (1, 0):  # the liver wins where the two would meet
            labels[self.organ_radius(index, points_mm) < 1.0] = index + 1
        return labels

    def organ_radius(self, index: int, points_mm: FloatArray) -> FloatArray:
        """Returns the normalised distance from an organ's centre at points (..., 3): below 1 inside."""
        local = (points_mm - self.centre_mm - self.organ_centres_mm[index]) @ self.organ_tilts[index]
        bent = local + self.bend_mm[index] * np.sin(np.roll(local, 1, axis=-1) / 14.0 + self.bend_phase[index])
        return np.asarray(np.linalg.norm(bent / self.organ_radii_mm[index], axis=-1), dtype=np.float64)

    def hounsfield(self, points_mm: FloatArray) -> FloatArray:
        """Returns the noise-free CT number at points (..., 3) in RAS+ mm."""
        local = points_mm - self.centre_mm
        radius = np.linalg.norm(local[..., :2] / self.body_mm, axis=-1)
        waves = np.sin(local[..., None, :] / np.array([9.0, 13.0, 21.0, 34.0])[:, None] + self.field_phase)
        unevenness = waves.prod(axis=-1).sum(axis=-1)
        values = np.where(radius < 1.0, _SOFT_HU + 18.0 * unevenness, _AIR_HU)
        values[(radius > 0.84) & (radius < 0.96)] = _ORGAN_HU  # the muscle wall is as bright as the organs
        spine = np.linalg.norm(local[..., :2] - np.array([0.0, -0.62 * self.body_mm[1]]), axis=-1)
        values[spine < 11.0] = _BONE_HU
        for loop in self.bowel:
            distance = np.linalg.norm(local - loop[:3], axis=-1)
            values[distance < loop[3]] = _ORGAN_HU + 6.0
            values[distance < 0.45 * loop[3]] = -400.0
        labels = self.organs(points_mm)
        grain = np.sin(local[..., 0] / 2.7) * np.sin(local[..., 1] / 3.1) * np.sin(local[..., 2] / 3.7)
        values[labels == 1] = (_ORGAN_HU + 8.0 * unevenness)[labels == 1]
        cortex = self.organ_radius(1, points_mm) > 0.6
        values[labels == 2] = (_ORGAN_HU + np.where(cortex, 18.0, -12.0) + 12.0 * grain)[labels == 2]
        return values


def make_torso(seed: int, number: int) -> Torso:
    """Returns the invented patient of this number; the same arguments give the same patient."""
    random = np.random.default_rng([seed, number, 3])
    size = random.uniform(0.92, 1.08)
    centres = np.array([[25.0, 6.0, 4.0], [-30.0, -10.0, -6.0]]) + random.uniform(-4.0, 4.0, (2, 3))
    radii = np.array([[29.0, 28.0, 40.0], [19.0, 20.0, 32.0]]) * random.uniform(0.9, 1.1, (2, 3))
    loops = random.integers(3, 6)
    bowel = np.column_stack(
        [
            random.uniform(-30.0, 10.0, loops),
            random.uniform(18.0, 38.0, loops),
            random.uniform(-60.0, 60.0, loops),
            random.uniform(7.0, 10.0, loops),
        ]
    )
    return Torso(
        centre_mm=random.uniform(-40.0, 40.0, 3),
        body_mm=np.array([78.0, 66.0]) * size,
        organ_centres_mm=centres * size,
        organ_radii_mm=radii * size,
        organ_tilts=np.stack([rotation(random.uniform(-18.0, 18.0, 3)) for _ in range(2)]),
        bend_mm=random.uniform(2.0, 4.5, (2, 3)),
        bend_phase=random.uniform(0.0, 2.0 * np.pi, (2, 3)),
        bowel=bowel * np.array([size, size, size, 1.0]),
        field_phase=random.uniform(0.0, 2.0 * np.pi, (4, 3)),
    )


def rotation(degrees: FloatArray) -> FloatArray:
    """Returns the rotation about x, then y, then z."""
    result = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result
