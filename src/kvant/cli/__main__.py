"""``python -m kvant.cli`` is the ``kvant`` command."""

from kvant.cli import main

main()
