"""The demo: a real pose network from float32 to one int8 file, and the file run by a process without torch.

python -m kvant.pose.demo [--images FOLDER] [--output build/demo]
"""

from kvant.pose.demo.run import DemoError, Options, run

__all__ = ["DemoError", "Options", "run"]
