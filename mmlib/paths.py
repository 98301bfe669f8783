"""The former name of `mmlib.files`, until every room has the new one."""

import sys

from mmlib import files

sys.modules[__name__] = files
