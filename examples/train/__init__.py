"""A whole training around the library: drawn or real faces in, checkpoints and a report out."""
