"""Clips to train on: drawn faces, real datasets, and the path from a file to a tensor."""
