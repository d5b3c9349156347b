"""Image arithmetic: preprocessing, augmentation, postprocessing."""
