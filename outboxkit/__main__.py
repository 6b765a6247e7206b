"""``python -m outboxkit``: the command line where no script is installed."""

from outboxkit.cli import main

main()
