"""DICOM in: from files over headers, frames, series and stacks to images and their labels, exactly or not at all."""
