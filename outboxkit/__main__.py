"""``python -m outboxkit``: the command line where no script is installed."""

from outboxkit.cli import main

if __name__ == "__main__":  # and not where every module is imported
    main()
