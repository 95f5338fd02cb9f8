"""The guide's Python runs, block after block, and draws the pictures it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "quantization.md"
TEXT = GUIDE.read_text()
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
SHOWN = re.findall(r"!\[.*?\]\((.*?)\)", PROSE)


def test_blocks_run_in_their_order(tmp_path: Path) -> None:
    """KVANT_PICTURES=docs/images keeps what they draw."""
    code = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    target = Path(os.environ.get("KVANT_PICTURES", tmp_path)).resolve()
    before = set(target.iterdir())
    subprocess.run([sys.executable, "-c", code], cwd=target, check=True)
    assert set(target.iterdir()) - before <= {target / Path(name).name for name in SHOWN}
    for name in SHOWN:
        assert ElementTree.parse(target / Path(name).name).getroot().tag.endswith("svg")


def test_pictures_are_small_and_know_no_date() -> None:
    assert len(SHOWN) == 5
    for name in SHOWN:
        content = (GUIDE.parent / name).read_bytes()
        assert len(content) < 60_000 and b"dc:date" not in content
