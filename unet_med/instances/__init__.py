"""Objects that can be counted: what a network learns of them, how they are cut out, measured and followed."""
