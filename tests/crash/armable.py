"""Imported first where daemons are forked from: what is armed only in the fork has to be armable by then."""

from __future__ import annotations

import os

os.environ.setdefault("RUNNERD_FAILPOINT", "")
