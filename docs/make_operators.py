"""Write docs/operators.md: the road of every ONNX operator, and how many of its node tests pass when compiled.

Run from the repository root: `python docs/make_operators.py` (about five minutes).
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "backends" / "library"))

HEAD = """# Operators

Every operator of the ONNX standard and its road through `irc.backends.tvm.library`, which takes what the kernels for
convolutions, matrix products, pooling and the like do not. Made by `docs/make_operators.py`.

- **definition**: a tensor expression of ours. **function**: the operator's own definition in the standard, by other
  operators. **written out**: control flow whose path is known when compiling. **constant**: known when compiling.
- Shapes are static. Element types: float16, float32, float64, integers of 8 to 64 bits, bool.
- The node tests are those of the `onnx` package: *passed* compared with the expected outputs after native execution,
  *refused* stopped with a reason (mostly element types, and shapes computed at run time). Two cases of Resize are
  left out: their expected values contradict the standard's text and onnxruntime.
"""


def count() -> dict[str, Counter[str]]:
    """Results of all node tests by operator."""
    import node_cases

    from irc.errors import UnsupportedError

    found: dict[str, Counter[str]] = {}
    for name, case in node_cases.cases().items():
        if "expanded" in name or name in node_cases.DISPUTED:
            continue
        counter = found.setdefault(node_cases.operator(name), Counter())
        try:
            node_cases.check(case)
            counter["passed"] += 1
        except UnsupportedError:
            counter["refused"] += 1
        except Exception as error:  # a defect: it belongs into the table, not into a traceback
            counter["failed"] += 1
            print(f"{name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return found


def table(results: dict[str, Counter[str]]) -> str:
    import onnx

    from irc.backends.tvm.library.supported import reason, road

    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})
    roads = Counter(road(n) for n in names)
    total: Counter[str] = sum(results.values(), Counter())
    lines = [
        HEAD,
        f"{len(names)} operators: {roads['definition']} definitions, {roads['function']} functions, "
        f"{roads['written out'] + roads['constant']} written out or constant, {roads['none']} not lowered. "
        f"{total.total()} node tests: {total['passed']} passed, {total['refused']} refused, {total['failed']} failed.",
        "",
        "| operator | road | passed | refused | failed | why not |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name in names:
        c = results.get(name, Counter())
        lines.append(f"| {name} | {road(name)} | {c['passed']} | {c['refused']} | {c['failed']} | {reason(name)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.filterwarnings("ignore")  # numpy, about the standard's own test data
    (ROOT / "docs" / "operators.md").write_text(table(count()))


if __name__ == "__main__":
    main()
