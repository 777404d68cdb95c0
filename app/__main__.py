"""``python -m app`` is the ``penstock`` command.

Runs on: start-up.
"""

from app.cli import main

if __name__ == "__main__":
    main(prog_name="penstock")
