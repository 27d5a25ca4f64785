"""What pip calls this package, and its version: on PyPI ``drowsy`` is another project.

``setup.py`` runs this file alone, so it imports nothing.
"""

NAME = "drowsynet"
VERSION = "0.1.0"
