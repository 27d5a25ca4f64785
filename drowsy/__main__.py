"""``python -m drowsy``: the ``drowsy`` command."""

import sys

from drowsy.cli import main

sys.exit(main())
