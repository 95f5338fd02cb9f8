"""The demo's command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kvant.errors import KvantError
from kvant.interrupts import interrupts_arrive
from kvant.pose.demo.run import SPEC, DemoError, Options, run


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of the command line; the environment variable IMAGES stands for --images."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m kvant.pose.demo", description=__doc__)
    parser.add_argument(
        "--images",
        type=Path,
        default=Path(os.environ["IMAGES"]) if os.environ.get("IMAGES") else None,
        help="a folder of pictures with people, instead of the sample video that pip fetches",
    )
    parser.add_argument("--output", type=Path, default=defaults.output, help="folder of the results (%(default)s)")
    parser.add_argument(
        "--calibration", type=_positive, default=defaults.calibration, help="calibrate on so many (%(default)s)"
    )
    parser.add_argument(
        "--frames", type=_positive, default=defaults.frames, help="compare on so many others (%(default)s)"
    )
    parser.add_argument(
        "--height", type=_height, default=defaults.height, help="height of the network's input (%(default)s)"
    )
    parser.add_argument("--threads", type=_positive, default=defaults.threads, help="CPU threads (%(default)s)")
    parser.add_argument("--repeats", type=_positive, default=defaults.repeats, help="timed runs (%(default)s)")
    return Options(**vars(parser.parse_args(arguments)))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _height(text: str) -> int:
    value, stride = _positive(text), SPEC.input.stride
    if value % stride:
        raise argparse.ArgumentTypeError(f"must be a multiple of {stride}, got {value}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo: 0 if every promise holds, 1 and a sentence if one does not or something fails."""
    try:
        with interrupts_arrive():
            broken = run(parse(arguments))
    except (DemoError, KvantError, OSError) as error:
        print(f"kvant demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nkvant demo: interrupted; the results of an earlier run are unchanged.", file=sys.stderr)
        return 130
    for sentence in broken:
        print(f"kvant demo: {sentence}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
