"""Runs a command where torch finds the device: `python tests/fakegpu COMMAND…`, with settings such as FAKE_CC=75.

Without a command it only builds the device, and says what is missing (exit code 1) where it cannot.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fakegpu

if reason := fakegpu.missing():
    sys.exit(f"no fake GPU: {reason}")
environment = fakegpu.environ()
if len(sys.argv) > 1:
    os.execvpe(sys.argv[1], sys.argv[1:], environment)
