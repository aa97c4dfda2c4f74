"""Naive float64 implementations, written from the formulas; they import nothing of the package."""
