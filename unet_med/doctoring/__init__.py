"""The label doctor: what would spoil training, and what of it can be put right without guessing.

What is certain is an error and stops training: labels that hold 0 and 255, leave gaps, are no whole numbers, were
interpolated, or have another shape or place than their image; images that hold NaN or the same value everywhere; a
label that is the image; one image, patient or group in two folds, or in training and test; files that have changed.

What is measured against the other cases, and could be as it should be, is a warning: empty labels; background and
foreground swapped; labels on air or shifted against their image; left and right swapped; nearly the same image, or
tiles of one picture, in two folds. Of objects: one number for several, pieces, holes, overlaps, tiny and huge ones.

Corrected on copies: 0/255, gaps, floats that are nearly whole, interpolated borders.
"""

from unet_med.doctoring.examination import examine, quick_findings
from unet_med.doctoring.findings import Interpolated, PairFinding, is_fixable
from unet_med.doctoring.repair import Repair, repair

__all__ = ["Interpolated", "PairFinding", "Repair", "examine", "is_fixable", "quick_findings", "repair"]
