"""``python -m benchmarks NAME [--store sqlite|postgres] [--messages N] [--rounds N] [--json]``."""

from benchmarks.commands import main

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
