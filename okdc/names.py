"""Words that several rooms have to spell alike. No torch."""

from __future__ import annotations

# A network with MFEF's extraction in its path: with dual attention behind it, and without.
MSFE = {True: "+msfe", False: "+msfe-da"}

# Of a method's table, where a teacher lies; `teacher_sha256` says which one it is, and marks a method that has one.
TEACHER_PLACES = ("teacher", "weights")
TEACHER = "teacher_sha256"
