"""Text in any script: a font of the machine has it, or a line says that boxes are drawn."""

import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from opsin.pictures import figures, fonts

FORK = "\u2afc"  # DejaVu Sans has no glyph of it; STIX, which comes with Matplotlib, does
NOWHERE = "\U0010fffd"  # of private use


def drawn(path, name):
    figures.save(figures.confusion_matrix(np.eye(2, dtype=int), [name, "b"], "t"), path)
    return np.asarray(Image.open(path))


def test_another_font_draws_what_the_usual_one_lacks(tmp_path, caplog, monkeypatch):
    fork = drawn(tmp_path / "fork.png", FORK)
    assert caplog.text == ""
    families, left = fonts.covering({FORK})
    assert (len(families), left) == (1, set())
    monkeypatch.setattr(fonts, "covering", lambda lacking: ([], set()))
    box = drawn(tmp_path / "box.png", FORK)
    assert np.any(fork != box)


def test_where_no_font_has_it_a_line_says_so(tmp_path, caplog, monkeypatch):
    drawn(tmp_path / "a.png", NOWHERE + FORK)
    (said,) = caplog.messages
    assert said.startswith(f"pictures show boxes for {NOWHERE}: no installed font has them")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    assert fonts.covering({FORK}) == ([], {FORK})


def test_other_warnings_are_given_as_they_are(tmp_path, monkeypatch):
    def print_png(canvas, file):
        warnings.warn("something else", UserWarning, stacklevel=1)

    monkeypatch.setattr(fonts.FigureCanvasAgg, "print_png", print_png)
    chart = figures.confusion_matrix(np.eye(2, dtype=int), ["a", "b"], "t")
    with pytest.warns(UserWarning, match="something else"):
        figures.save(chart, tmp_path / "a.png")
