"""`python -m gpuplugin`."""

import sys

from gpuplugin.cli.main import main

sys.exit(main())
