"""What computes the attention faster than its definition does, with the same numbers."""
