"""`python -m irc`."""

import sys

from irc.cli.main import main

sys.exit(main())
