"""``python -m drowsy``: the ``drowsy`` command."""

import sys

from drowsy.cli.main import main

sys.exit(main())
