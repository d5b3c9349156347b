"""Which image belongs to which label, in which fold: the data set as one file.

A manifest is a Medical Segmentation Decathlon JSON, so MONAI and nnU-Net tools read it, with a few keys more:
``fold``, ``group``, ``sha256``, ``frame``, ``read`` and ``provenance`` of each case, ``task``, ``folds``,
``label_values``, ``regions``, ``ignore_label`` and ``findings`` of the whole. Paths are relative to the manifest.
"""

from unet_med.manifest.build import BuildReport, build_manifest
from unet_med.manifest.draft import BuildOptions
from unet_med.manifest.files import load_manifest, save_manifest
from unet_med.manifest.folds import assign_folds
from unet_med.manifest.model import Finding, Manifest, ManifestCase, Severity, content_sha256, verified, verify
from unet_med.manifest.values import LabelScan, distinct_values, refusal, remapped, scan_label, value_findings

__all__ = [
    "BuildOptions",
    "BuildReport",
    "Finding",
    "LabelScan",
    "Manifest",
    "ManifestCase",
    "Severity",
    "assign_folds",
    "build_manifest",
    "content_sha256",
    "distinct_values",
    "load_manifest",
    "refusal",
    "remapped",
    "save_manifest",
    "scan_label",
    "value_findings",
    "verified",
    "verify",
]
