"""``python -m fresco_trt.cli``: the same as ``fresco-trt``."""

import sys

from fresco_trt.cli.main import main

sys.exit(main())
