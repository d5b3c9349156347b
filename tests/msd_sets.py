"""Sizes of the Medical Segmentation Decathlon's sets, which nnU-Net's published plans are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unet_med.config import parse_config
from unet_med.manifest import Manifest
from unet_med.planning import CaseFingerprint, ChannelStatistics, Fingerprint, Plan, plan_from_fingerprint


@dataclass(frozen=True)
class DecathlonSet:
    """One set: target spacing (mm) and median image on it (voxels) along R, A and S, cases, labels with background.

    ``patch`` and ``batch`` are nnU-Net's published plan of its 3-D network at full resolution for a card of 8 GB.
    """

    name: str
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    cases: int
    labels: int
    patch: tuple[int, int, int]
    batch: int

    def fingerprint(self) -> Fingerprint:
        """Every case has the median's size: a plan knows medians and sums only."""
        one = CaseFingerprint(self.shape, self.spacing, 1.0)
        voxels = (10**6, *(10**4,) * (self.labels - 1))
        return Fingerprint((one,) * self.cases, (ChannelStatistics(99.29, 39.47, -41.0, 176.0),), voxels)

    def manifest(self) -> Manifest:
        """A manifest of which a plan takes names only."""
        labels = {"background": 0, **{f"label{n}": n for n in range(1, self.labels)}}
        return Manifest(self.name, labels, ("MR",), "MR", "semantic", ())


SETS = (
    DecathlonSet("Heart", (1.25, 1.25, 1.37), (232, 320, 115), 20, 2, (160, 192, 80), 2),
    DecathlonSet("Liver", (0.7676, 0.7676, 1.0), (512, 512, 482), 131, 3, (128, 128, 128), 2),
    DecathlonSet("Hippocampus", (1.0, 1.0, 1.0), (35, 50, 36), 260, 3, (40, 56, 40), 9),
    DecathlonSet("Prostate", (0.625, 0.625, 3.6), (320, 319, 20), 32, 3, (256, 320, 20), 2),
    DecathlonSet("Lung", (0.785, 0.785, 1.24), (512, 512, 252), 63, 2, (160, 192, 80), 2),
    DecathlonSet("Pancreas", (0.8, 0.8, 2.5), (512, 512, 96), 281, 3, (224, 224, 40), 2),
    DecathlonSet("HepaticVessel", (0.8, 0.8, 1.5), (512, 512, 150), 303, 3, (192, 192, 64), 2),
    DecathlonSet("Spleen", (0.793, 0.793, 1.6), (512, 512, 187), 41, 2, (160, 192, 64), 2),
    DecathlonSet("Colon", (0.78, 0.78, 3.0), (512, 512, 150), 126, 2, (160, 192, 56), 2),
)


def planned_like_nnunet(one: DecathlonSet, network: dict[str, Any], dims: int = 3) -> Plan:
    """Plans a set for a GPU with all that nnU-Net leaves open."""
    config = parse_config({"name": "p", "dims": dims, "network": network}, "test")
    return plan_from_fingerprint(config, one.manifest(), one.fingerprint(), device="cuda")
