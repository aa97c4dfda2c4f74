"""The options of a training run of seconds: drawn clips, so small that nothing is learned."""

SMALL = ["--data", "synthetic", "--clips", "24", "--size", "16", "--frames", "4"]
SMALL += ["--batch-size", "8", "--workers", "1", "--epochs", "1", "--device", "cpu"]
