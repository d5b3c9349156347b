"""DICOM in: from files over headers, frames, series and stacks to images and their labels, exactly or not at all."""

COPY_AGAIN = "copy the series again from its origin"
EXPORT_AGAIN = "export the series again from the archive or the scanner"
