"""`python -m tiny_models.server`"""

from tiny_models.server.command import main

main()
