"""The second start of a cold call, from the protected copy of the interpreter: see `runc.protection`."""

import os
import sys

sys.path[:] = os.environ.pop("_GANTRY_RUNC_PATHS").split(":")
sys.argv[0] = "runc"

from runc.cli import main  # noqa: E402

main()
