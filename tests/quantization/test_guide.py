"""The guide's Python runs, block after block, draws the pictures it shows, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "quantization.md"
TEXT = GUIDE.read_text()


def test_blocks_run_in_their_order(tmp_path: Path) -> None:
    code = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    shown = {Path(name).name for name in re.findall(r"!\[.*?\]\((.*?)\)", TEXT)}
    assert shown == {path.name for path in tmp_path.iterdir()}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    assert [link for link in links if not (GUIDE.parent / link).exists()] == []
