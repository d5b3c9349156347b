"""Objects in files of other tools: outlines and run lengths in, one label image and a class for each object out."""

OUTLINE_ENDINGS = (".roi", ".zip", ".geojson", ".json")
"""Endings of files that may hold outlines; whether they do, :func:`unet_med.io.objects.reading.outline_kind` says."""
