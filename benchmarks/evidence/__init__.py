"""Parts of the heterogeneity benchmark, see benchmarks/heterogeneity.py."""
