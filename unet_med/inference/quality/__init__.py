"""Knowing when a prediction fails: how good a mask probably is, and whether the image is unlike those of training."""
