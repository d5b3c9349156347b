"""Pictures of an image with what was found in it, made to be looked at for a second.

A volume is shown in three planes through the middle of its largest label, in true proportions. When the orientation
is known the planes follow the radiological convention (the patient's right is on the viewer's left, anterior and
superior are up) and letters say so; otherwise the stored axes are shown as they are, without letters.
"""

from __future__ import annotations

from unet_med.overlays.canvas import Picture
from unet_med.overlays.heat import heat_preview
from unet_med.overlays.objects import object_colours, object_preview
from unet_med.overlays.outlines import outline_preview
from unet_med.overlays.planes import PERCENTILES, to_lpi

__all__ = ["PERCENTILES", "Picture", "heat_preview", "object_colours", "object_preview", "outline_preview", "to_lpi"]
