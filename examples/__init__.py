"""The library at work: three short programs, and a whole training in ``examples.train``."""
