"""The site: ``make docs``. What is made from code and results is written before pages are read."""

from pathlib import Path

from opsin.pages import gallery, measured, reference

HERE = Path(__file__).parent

project = "Opsin"
copyright = "The Opsin authors, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["_static"]
html_theme = "furo"
html_title = "Opsin"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
add_module_names = False
maximum_signature_line_length = 80
pygments_style = "friendly"
highlight_language = "none"  # what is typed; code in Python says so
nitpicky = False  # types of libraries have no page here; links are checked in the built pages


def write(folder: Path, pages: dict[str, str]) -> None:
    """Makes a folder hold these files and no others; what is the same is left alone."""
    wanted = {folder / name: text for name, text in pages.items()}
    for path in folder.rglob("*.*"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


write(HERE / "gallery", gallery.pages(HERE.parent))
write(HERE / "measured", measured.pages(HERE.parent))
write(HERE / "reference", reference.pages(HERE.parent))


def setup(app):
    """Leads links to files of ``results/`` to their pages."""

    def read(app, name, text):
        text[0] = measured.inside(text[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
