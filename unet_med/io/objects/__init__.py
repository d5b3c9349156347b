"""Objects in files of other tools: outlines and run lengths in, one label image and a class for each object out."""
