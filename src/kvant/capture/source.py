"""Where a node of an exported program comes from: the module's path and the line of the user's code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import fx

from kvant.capture.export import WRAPPED
from kvant.graph import Source

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)\s*\n\s*(?P<code>[^\n]*)')
_TORCH = str(Path(torch.__file__).parent)
_KVANT = str(Path(__file__).parent)


class _Frame(NamedTuple):
    file: str
    line: str
    function: str
    code: str


def module_path(node: fx.Node) -> str:
    """The path of the module whose forward made the node, as ``named_modules`` spells it; "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    # A module that is called again has "@1" and so on behind its path.
    parts = [part.partition("@")[0] for part in path.split(".")]
    return ".".join(parts[1:] if parts[0] == WRAPPED else parts)


def source_of(node: fx.Node) -> Source:
    """Module path and source line of a node."""
    frame = _user_frame(node)
    return Source(module_path(node), f"{_short(frame.file)}:{frame.line}" if frame else "")


def user_line(node: fx.Node) -> str:
    """For messages: ``net.py:12 in forward: y = x.foo()``."""
    frame = _user_frame(node)
    return f"{_short(frame.file)}:{frame.line} in {frame.function}: {frame.code.strip()}" if frame else ""


def output_name(node: fx.Node) -> str:
    """A name for the node's output: the module's path, and the operator unless a layer of torch.nn made it."""
    path = module_path(node)
    operator = re.sub(r"^_+|_+$|(_\d+)$", "", str(node.target).removeprefix("aten.").partition(".")[0])
    stack = node.meta.get("nn_module_stack") or {}
    layer = bool(stack) and str(next(reversed(stack.values()))[1]).startswith("torch.nn.modules.")
    name = path if layer and path else f"{path}.{operator}" if path else operator
    return name[:200]


def _user_frame(node: fx.Node) -> _Frame | None:
    """The innermost frame outside of torch: that is the line a user can change."""
    frames = [_Frame(*match) for match in _FRAME.findall(node.meta.get("stack_trace") or "")]
    frames = [frame for frame in frames if not frame.file.startswith(_KVANT)]
    own = [frame for frame in frames if not frame.file.startswith(_TORCH)]
    return (own or frames)[-1] if frames else None


def _short(file: str) -> str:
    """The path inside its package for an installed file, else the bare file name: never a path of this machine."""
    head, separator, tail = file.rpartition("site-packages/")
    return tail if separator else Path(head or tail).name
