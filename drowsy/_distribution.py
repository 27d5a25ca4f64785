"""What pip calls this package, and its version; ``setup.py`` reads this file, which imports nothing.

On PyPI ``drowsy`` is another project.
"""

NAME = "drowsynet"
VERSION = "0.1.0"
