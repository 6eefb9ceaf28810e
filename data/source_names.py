"""How data sets are named. Nothing here imports anything, as every command needs it."""

FORMS = {
    "digits": "digits",
    "synthetic": "synthetic",
    "shapes": "shapes",
    "tfds": "tfds:NAME",
    "folder": "folder:PATH",
    "masks": "masks:PATH",
}
"""Kind of source → how it is written."""

WITH_A_NAME = tuple(kind for kind, form in FORMS.items() if ":" in form)
"""The kinds that stand before a colon: never the name of a module."""
