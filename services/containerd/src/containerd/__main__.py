"""``python -m containerd``: the same as the command."""

from __future__ import annotations

import sys

from containerd.cli import main

sys.exit(main())
