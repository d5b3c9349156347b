"""Masks beside their truths: which belong together, how each kind of task is scored, and what people read of it."""
