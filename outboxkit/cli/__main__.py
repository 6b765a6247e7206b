"""``python -m outboxkit.cli``: the command line where no script is installed."""

from outboxkit.cli import main

main()
