"""Masks out: every format, each read back by another library before it gets its name."""
