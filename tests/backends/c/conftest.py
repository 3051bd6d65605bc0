"""Networks and cases of the tests of plan and lowering serve here as well."""

import sys
from pathlib import Path

for folder in ("plan", "lowering"):
    sys.path.append(str(Path(__file__).resolve().parent.parent / folder))
