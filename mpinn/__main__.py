"""``python -m mpinn``."""

from mpinn.cli.main import main

main()
