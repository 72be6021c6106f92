"""Where the minutes of a test run went: by folder, and the slowest tests. Called by .ci/run."""

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

SHOWN = 25


def main(folder: Path) -> None:
    """Print it from the JUnit files in a folder; times are of a test's fixtures and itself."""
    tests: list[tuple[float, str]] = []
    minutes: dict[str, float] = defaultdict(float)
    for path in sorted(folder.glob("*.xml")):
        for case in ElementTree.parse(path).iter("testcase"):
            seconds = float(case.get("time", 0))
            module = case.get("classname", "").replace(".", "/")
            tests.append((seconds, f"{module}.py::{case.get('name')}"))
            minutes["/".join(module.split("/")[:2])] += seconds / 60
    write = sys.stdout.write
    write(f"\nthe {SHOWN} slowest tests, their fixtures included\n")
    for seconds, name in sorted(tests, reverse=True)[:SHOWN]:
        write(f"{seconds:8.1f} s  {name}\n")
    write("\nminutes by folder\n")
    for name, spent in sorted(minutes.items(), key=lambda each: -each[1]):
        write(f"{spent:8.1f}    {name}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
