"""``python -m toolkit.cli``, for launchers such as torchrun."""

from toolkit.cli.main import main

main()
