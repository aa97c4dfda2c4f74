"""What the library costs, measured."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))  # their clips and their plots' style
