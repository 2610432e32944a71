"""`python -m whet.cli`, for where the script `whet` is not on the path."""

import sys

from whet.cli import main

sys.exit(main())
