"""How fast okdc is here, beside the plain way of doing the same. Importing this imports none of its modules.

request.py   what the command shall measure, checked
here.py      the machine, and the settings that okdc chooses on it
pairs.py     two things in turn, and the seconds that each took
stats.py     the median of their ratios, how sure it is, and when it does not tell
ours.py      okdc's side of a pair, on random images
plain.py     the other side, as the field's public code does it
pairings.py  which sides make a pair, and what their ratio means
suite.py     which pairs are measured, what each gets of the time, and the facts of all
show.py      what is printed of the facts
"""

GROUPS = ("data", "ffl", "fefr", "eval", "export", "recipe")  # what --only can name
SECONDS = 200  # for all of it: under five minutes with imports and what overruns, on two slow cores
