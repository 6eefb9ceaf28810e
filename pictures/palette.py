"""Colours that can be distinguished with every kind of colour vision."""

from __future__ import annotations

# Okabe and Ito, 2008, "Color Universal Design".
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, YELLOW = "#E69F00", "#56B4E9", "#000000", "#F0E442"

LINES = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)
"""For lines and dots; their yellow is left out, for it fades on white."""

AREAS = (
    *(BLUE, ORANGE, GREEN, PINK, YELLOW, RED, SKY, BLACK),
    # Tol, 2021, "Colour schemes", the muted one: what differs most from those above.
    *("#882255", "#999933", "#DDDDDD", "#332288"),
)
"""For the classes of a mask, in order."""
IGNORED = "#FFFFFF"
"""For pixels of a mask that have no class."""
