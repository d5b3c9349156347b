"""The data sets and the pipelines of the demos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from unet_med.phantoms import PhantomSet, write_phantoms_2d, write_phantoms_3d, write_phantoms_cells

Kind = Literal["3d", "2d", "cells"]

_PIPELINE_3D = """\
# Two organs in phantom CT: a small network that learns in minutes on two cores. What is left out is resolved from
# the data; pipelines/semantic_3d.yaml is the place to start for real scans.
name: demo_3d
dims: 3
network:
  features: [8, 16, 32]
  strides: [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
  kernels: [[3, 3, 3], [3, 3, 3], [3, 3, 3]]
sampling:
  patch_voxels: [40, 36, 28]
  batch_size: 2
training:
  learning_rate: 0.003
  epochs: 12
  steps_per_epoch: 20
  validation_every_epochs: 4
  workers: 0
"""

_PIPELINE_2D = """\
# Nuclei in phantom microscopy, pixel by pixel: a small network that learns in minutes on two cores.
name: demo_2d
dims: 2
network:
  features: [8, 16, 32, 64]
  strides: [[1, 1], [2, 2], [2, 2], [2, 2]]
  kernels: [[3, 3], [3, 3], [3, 3], [3, 3]]
sampling:
  patch_voxels: [128, 128]
  batch_size: 4
training:
  learning_rate: 0.003
  epochs: 12
  steps_per_epoch: 20
  validation_every_epochs: 4
  workers: 0
"""

_PIPELINE_CELLS = """\
# Cells in phantom movies, one by one: a small network that learns in minutes on two cores.
# pipelines/nuclei_2d.yaml is the place to start for real pictures.
name: demo_cells
task: instance
dims: 2
network:
  features: [8, 16, 32, 64]
  strides: [[1, 1], [2, 2], [2, 2], [2, 2]]
  kernels: [[3, 3], [3, 3], [3, 3], [3, 3]]
sampling:
  patch_voxels: [96, 96]
  batch_size: 4
training:
  learning_rate: 0.003
  epochs: 12
  steps_per_epoch: 20
  validation_every_epochs: 4
  workers: 0
"""


@dataclass(frozen=True)
class Recipe:
    """One demo.

    Attributes:
        what: What is made, for people.
        write: Writes the data set.
        cases: Number of labelled cases.
        pipeline: The pipeline, as YAML.
        task: What label values mean.
        label_names: As ``unet-med manifest`` takes them.
        folds: How many.
        group_by: What stays together, as a pattern; empty for nothing.
    """

    what: str
    write: Callable[..., PhantomSet]
    cases: int
    pipeline: str
    task: Literal["semantic", "instance"]
    label_names: str
    folds: int = 4
    group_by: str = ""


RECIPES: Mapping[Kind, Recipe] = {
    "3d": Recipe(
        "CT-like DICOM series of invented patients",
        write_phantoms_3d,
        12,
        _PIPELINE_3D,
        "semantic",
        "1=liver,2=kidney",
    ),
    "2d": Recipe("pictures of nuclei", write_phantoms_2d, 16, _PIPELINE_2D, "instance", "1=nucleus"),
    "cells": Recipe(
        "movies of cells that divide",
        write_phantoms_cells,
        3,
        _PIPELINE_CELLS,
        "instance",
        "1=cell",
        folds=3,
        group_by=r"movie\d+",
    ),
}
