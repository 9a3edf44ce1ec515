"""How fast okdc is on this machine, beside the plain way of doing the same. Importing this imports none of its modules.

request.py     what the command shall measure, checked
machine.py     the machine, and the settings that okdc chooses on it
pairs.py       two sides measured in turn, and the seconds of each
stats.py       the median of their ratios with its interval, or the reason that there is none
okdc_step.py   okdc's side of a pair, on random images
plain_step.py  the other side, as the field's public code does it
pairings.py    which sides make a pair, and what their ratio means
suite.py       which pairs are measured, the share of the time that each gets, and the facts of all
"""

GROUPS = ("data", "augment", "ffl", "fefr", "eval", "export", "recipe")  # what --only can name
SECONDS = 260  # for all of it: under five minutes with imports and what overruns, on two slow cores
