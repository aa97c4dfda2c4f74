"""Parts of the overhead benchmark: timing, peers, measurements, report."""
