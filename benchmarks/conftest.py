"""pytest finds what the benchmarks import: their own folder is not on the path of `pytest benchmarks/...`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
