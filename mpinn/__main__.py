"""``python -m mpinn``."""

from mpinn.cli import main

main()
