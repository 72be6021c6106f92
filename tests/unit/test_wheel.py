"""The wheel as the images build it: all that the packages need at run time is in it."""

import os
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = {"qprobe": "probes", "qprobe_server": "server", "qprobe_client": "clients"}


def test_the_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """By the step of the Dockerfiles, from the files that they copy."""
    subprocess.run(
        [ROOT / "docker" / "steps" / "build-wheel"],
        env={**os.environ, "QPROBE_SOURCE": str(ROOT), "QPROBE_DIST": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT / folder))
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted
