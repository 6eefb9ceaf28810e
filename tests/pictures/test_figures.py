"""Pictures of masks, of images in rows, and curves: what is shown, and what says so."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from opsin.data.masks import IGNORE
from opsin.pictures import figures, maps, palette
from opsin.pictures.kinds import Curve, MaskPreview, Panels, Preview
from opsin.pictures.text import class_caption


def test_each_class_has_a_colour_of_its_own_and_what_is_ignored_is_white():
    colours = figures.class_colours(np.array([*range(len(palette.AREAS)), IGNORE]))
    assert len({tuple(colour) for colour in colours}) == len(palette.AREAS) + 1
    np.testing.assert_array_equal(colours[-1], [1, 1, 1])
    many = figures.class_colours(np.arange(21))
    assert len({tuple(colour) for colour in many}) == 21
    np.testing.assert_allclose(1 - many[len(palette.AREAS)], 0.6 * (1 - many[0]))


def test_blending_is_half_image_and_half_class():
    image = np.array([[[0.2], [0.8]]])
    tinted = figures.blended(image, np.array([[0, IGNORE]]))
    np.testing.assert_allclose(tinted[0, 0], 0.1 + 0.5 * np.array(to_rgb(palette.AREAS[0])))
    np.testing.assert_allclose(tinted[0, 1], 0.9)
    green = figures.blended(np.array([[[0.0, 1.0, 0.0]]]), np.array([[IGNORE]]))
    np.testing.assert_allclose(green[0, 0], 0.5 * 0.587 + 0.5)


def preview(masks: np.ndarray, predictions: np.ndarray) -> MaskPreview:
    images = np.zeros((*masks.shape, 1), np.float32)
    return MaskPreview(images, masks, predictions)  # pyright: ignore


def test_errors_are_marked_where_a_label_counts():
    masks = np.array([[[0, 1], [IGNORE, 1]]])
    predictions = np.array([[[0, 0], [0, 1]]])
    figure = figures.draw(preview(masks, predictions), ("a", "b"), "title")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "mask", "predicted", "error"]
    shown = np.asarray(figure.axes[3].images[0].get_array())
    red = (shown == to_rgb(palette.RED)).all(-1)
    np.testing.assert_array_equal(red, [[False, True], [False, False]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "error"]


def test_the_mask_with_most_errors_comes_first():
    masks = np.array([[[0, 1]], [[1, 1]], [[IGNORE, IGNORE]], [[1, 0]]])
    figure = figures.draw(preview(masks, np.array([[[0, 0]], [[0, 0]]] * 2)), (), "test")
    errors = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[3::4]]
    wrong = [np.sum((error == to_rgb(palette.RED)).all(-1)) for error in errors]
    assert wrong == [2, 1, 1, 0]
    masked = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[1::4]]
    np.testing.assert_array_equal(masked, figures.blended(np.zeros((1, 2, 1)), masks[[1, 0, 3, 2]]))
    assert figure.get_suptitle() == "test\nworst first"


def test_without_names_the_legend_has_the_labels_that_are_shown():
    masks = np.array([[[0, 2], [IGNORE, 2]]])
    figure = figures.draw(preview(masks, np.array([[[0, 4], [0, 2]]])), (), "title")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "4", "error"]
    colours = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    np.testing.assert_allclose(colours[:3], figures.class_colours(np.array([0, 2, 4])))


def test_no_more_rows_than_asked_for():
    masks = np.zeros((5, 3, 4), np.uint8)
    images = np.zeros((5, 3, 4, 3))
    assert len(figures.mask_grid(images, masks, rows=2).axes) == 4
    assert len(figures.mask_grid(images[:1], masks[:1], predictions=masks[:1]).axes) == 4


def test_wrong_predictions_come_first_and_the_title_says_which_class_is_the_true_one():
    images = np.linspace(0, 1, 4)[:, None, None, None] * np.ones((4, 3, 3, 1))
    shown = Preview(images, np.array([0, 1, 1, -1]), np.array([0, 0, 1, 0]))  # pyright: ignore
    figure = figures.draw(shown, ("cat", "dog"), "test")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["dog → cat", "-1 → cat", "cat", "dog"]
    assert figure.get_suptitle() == "test\n2 of 4 wrong: true → predicted"
    greys = [np.asarray(axes.images[0].get_array()).mean() for axes in figure.axes]
    np.testing.assert_allclose(greys, [1 / 3, 1, 0, 2 / 3])
    labelled = figures.draw(Preview(images, np.array([1, 0, 0, 0])), ("cat", "dog"), "batch")  # pyright: ignore
    assert [axes.get_title() for axes in labelled.axes] == ["dog", "cat", "cat", "cat"]
    assert labelled.get_suptitle() == "batch"


def test_panels_stand_edge_to_edge_with_their_titles():
    images = np.random.default_rng(0).random((2, 3, 4, 5, 1))
    page = figures.tiled(images)
    assert page.shape == (2 * 5 + 1, 3 * 6 + 1, 3)
    for row, column in np.ndindex(2, 3):
        top, left = 1 + 5 * row, 1 + 6 * column
        tile = page[top : top + 4, left : left + 5]
        np.testing.assert_array_equal(tile, np.repeat(images[row, column], 3, axis=-1))
    np.testing.assert_array_equal(page[::5], 1)
    shown = Panels(images, rows=("image", "code"), columns=("a", "b", "c"))  # pyright: ignore
    (axes,) = figures.draw(shown, (), "title").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["image", "code"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]


def test_codes_are_drawn_by_how_often_they_are_used():
    (axes,) = figures.usage(np.array([1, 0, 3, 0]), "code", "title").axes
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [0.75, 0.25, 0, 0])
    assert axes.get_xlabel() == "code (2 of 4 used)"


CURVES = (
    Curve(("loss", "nll"), logarithmic=True),
    Curve(("rate", "distortion"), logarithmic=True),
    Curve(("discriminator_loss", "generator_loss")),
)


def test_a_curve_has_a_panel_for_what_a_run_logs(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n')
    assert [axes.get_ylabel() for axes in figures.training_curve(log, CURVES).axes] == ["loss"]
    with log.open("a") as file:
        file.write('{"step": 2, "test/rate": 3.0, "test/distortion": 4.0, "test/iou/0": 1.0}\n')
    loss, bound = figures.training_curve(log, CURVES).axes
    assert [text.get_text() for text in bound.get_legend().get_texts()] == [
        "test/distortion",
        "test/rate",
    ]
    assert loss.get_yscale() == "log"
    players = tmp_path / "players.jsonl"
    players.write_text('{"step": 1, "train/generator_loss": 2.0, "train/discriminator_loss": -1}\n')
    (both,) = figures.training_curve(players, CURVES).axes
    assert len(both.lines) == 2
    with log.open("a") as file:
        file.write('{"step": 3, "train/loss": -1.0}\n')
    assert figures.training_curve(log, CURVES).axes[0].get_yscale() == "linear"


NAMES = ("cost_$1_$2", "_background_", "a$b", "caf\udce9")


def shown_texts(figure):
    """All texts as they come out of Matplotlib, which reads formulas between two dollars."""
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    drawn = [text._preprocess_math(text.get_text()) for text in texts]
    assert not any(formula for _, formula in drawn), drawn
    return {written for written, _ in drawn}


@pytest.mark.parametrize("kind", ["matrix", "images", "masks", "maps", "panels"])
def test_names_are_drawn_as_they_are_written(kind):
    labels, title = np.arange(4), "$split$, step 1"
    masks = np.broadcast_to(np.arange(4)[:, None, None], (4, 2, 2))
    draw = {
        "matrix": lambda: figures.confusion_matrix(np.eye(4, dtype=int), NAMES, title),
        "images": lambda: figures.image_grid(
            np.zeros((4, 2, 2, 1)), labels=labels, class_names=NAMES, title=title
        ),
        "masks": lambda: figures.draw(preview(masks, masks), NAMES, title),
        "maps": lambda: maps.scatter({"$a$": {"pca": np.eye(4)[:, :2]}}, labels, NAMES, title),
        "panels": lambda: figures.panels(np.zeros((4, 1, 2, 2, 1)), rows=NAMES, title=title),
    }
    texts = shown_texts(draw[kind]())
    assert {*NAMES[:3], r"caf\udce9"} <= texts  # a byte of a name that is not UTF-8
    assert any(text.startswith(title) for text in texts)


def test_maps_stand_in_rows_and_columns_that_are_named_once():
    points = np.arange(24.0).reshape(2, 2, 3, 2)
    rows = {row: dict(zip("PT", own, strict=True)) for row, own in zip("ab", points, strict=True)}
    axes = maps.scatter(rows, np.array([1, 0, 1]), NAMES, "t").axes
    assert [(x.get_ylabel(), x.get_title()) for x in axes] == [
        ("a", "P"), ("", "T"), ("b", ""), ("", "")
    ]  # fmt: skip
    for each, expected in zip(axes, points.reshape(4, 3, 2), strict=True):
        first, second = (x.get_offsets() for x in each.collections)
        np.testing.assert_array_equal(first, expected[[1]])
        np.testing.assert_array_equal(second, expected[[0, 2]])


def test_a_soft_label_is_in_one_line():
    assert class_caption(np.array([0.7, 0.3]), ("a\nb", "c")) == r"a\nb 0.70 c 0.30"
    assert class_caption(np.array([1.0, 0.0]), ("a\nb", "c")) == r"a\nb"


def test_a_curve_of_a_split_is_named_whatever_it_is_called(tmp_path):
    lines = [{"step": s, "_held/loss": 1.0 + s, "a$b$/loss": 2.0 + s} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    figure = figures.training_curve(tmp_path / "metrics.jsonl", CURVES)
    (legend,) = (axes.get_legend() for axes in figure.axes)
    assert [text.get_text() for text in legend.get_texts()] == ["_held/loss", r"a\$b\$/loss"]
    FigureCanvasAgg(figure).draw()


def test_no_figure_starts_latex(tmp_path, monkeypatch):
    """A ``matplotlibrc`` that lies in the working directory can ask for it."""
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is none
    with rc_context({"text.usetex": True, "text.latex.preamble": r"\input{evil}"}):
        figure = figures.image_grid(
            np.zeros((1, 4, 4, 1)), labels=np.array([0]), class_names=["a"], title="t"
        )
        figures.save(figure, tmp_path / "a.png")
        chart = figures.confusion_matrix(np.eye(2, dtype=int), ["a", "b"], "t")
        figures.save(chart, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_a_curve_of_training_says_over_how_many_steps_its_points_are_means(tmp_path):
    lines = [{"step": s, "train/loss": 1.0 + s} for s in (5, 10, 15, 17)]
    lines += [{"step": s, "test/loss": 1.0 + s} for s in (10, 17)]
    log = tmp_path / "metrics.jsonl"
    for each, name in ((lines, "train/loss (mean of 5 steps)"), (lines[-3:], "train/loss")):
        one = [x | {"step": 1 + i} for i, x in enumerate(each)] if len(each) == 3 else each
        log.write_text("".join(json.dumps(x) + "\n" for x in one))
        (axes,) = figures.training_curve(log, CURVES).axes
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names == ["test/loss", name]


DRAWN = {
    **dict.fromkeys(("set_title", "suptitle", "set_xlabel", "set_ylabel", "set_text"), 0),
    **dict.fromkeys(("set_xticks", "set_yticks"), 1),
    **dict.fromkeys(("text", "figtext", "annotate"), 2),
}
"""Methods of Matplotlib that draw text, and which of their arguments it is."""


def unwritten(tree: ast.AST) -> list[str]:
    """Calls that give Matplotlib a text that has not been through ``pictures.text``."""
    found = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        named = [x.value for x in call.keywords if x.arg in ("label", "labels", "title", "s")]
        place = DRAWN.get(call.func.attr)
        texts = named + ([] if place is None else call.args[place : place + 1])
        safe = ("as_written", "all_written", "fitted")
        sound = all(
            isinstance(x, ast.Constant)
            or (isinstance(x, ast.List) and not x.elts)
            or (isinstance(x, ast.Call) and isinstance(x.func, ast.Name) and x.func.id in safe)
            for x in texts
        )
        if call.func.attr == "legend" or not sound:
            found.append(ast.unparse(call))
    return found


def test_no_text_reaches_matplotlib_but_as_it_is_written():
    house = Path(figures.__file__).parents[1]
    rooms = [room for room in house.iterdir() if (room / "__init__.py").exists()]
    drawing = {
        str(path.relative_to(house)): ast.parse(text)
        for room in rooms
        if room.name != "tests"
        for path in room.rglob("*.py")
        if "import matplotlib" in (text := path.read_text()) or "from matplotlib" in text
    }
    assert set(drawing) == {
        *("pictures/figures.py", "pictures/fonts.py", "pictures/maps.py", "pictures/text.py"),
        "report/figure.py",
    }
    assert {x: unwritten(tree) for x, tree in drawing.items() if x != "pictures/text.py"} == {
        "pictures/figures.py": [],
        "pictures/fonts.py": [],
        "pictures/maps.py": [],
        "report/figure.py": [],
    }
    bad = "axes.set_title(name); axes.legend(); axes.plot(x, label=name); axes.text(0, 1, f'{x}')"
    assert len(unwritten(ast.parse(bad))) == 4


def test_long_names_stay_above_their_image():
    names = ("golden retriever, a kind of dog " * 4, "\x1b[31mred\nline", "x" * 60)
    figure = figures.image_grid(
        np.zeros((3, 2, 2, 1)),
        labels=np.arange(3),
        predictions=np.array([1, 1, 2]),
        class_names=names,
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[1] == r"\x1b[31mred\nline"
    assert all(len(line) <= 22 + 2 for title in titles for line in title.splitlines())
    assert [len(title.splitlines()) for title in titles[:3]] == [3, 1, 3]
    FigureCanvasAgg(figure).draw()
