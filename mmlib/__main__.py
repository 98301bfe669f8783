"""`python -m mmlib`."""

import sys

from mmlib.cli import main

sys.exit(main())
