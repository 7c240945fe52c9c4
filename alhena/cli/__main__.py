"""``python -m alhena.cli``."""

from alhena.cli.main import main

main()
