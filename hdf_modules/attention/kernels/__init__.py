"""Attention by kernels for GPUs, written in Triton; imported only where they may run."""
