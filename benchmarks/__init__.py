"""What the library costs and what it buys, measured: one folder a topic, see __main__.py."""
