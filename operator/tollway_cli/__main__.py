"""`python -m tollway_cli`, the same as the `tollway` command."""

from tollway_cli.main import main

main()
