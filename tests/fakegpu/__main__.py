"""`python tests/fakegpu COMMAND…`: the command, where torch finds the device (settings: FAKE_CC=75 and others)."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fakegpu

if reason := fakegpu.missing():
    sys.exit(f"no fake GPU: {reason}")
os.execvpe(sys.argv[1], sys.argv[1:], fakegpu.environ())
