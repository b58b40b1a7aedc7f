"""The page of a run: an executed notebook as HTML for people who have no Jupyter, and that does nothing by itself.

What outputs hold came from data and from packages: tags and styles that act on the page are taken out, pictures that a
Markdown cell names are taken in, formulas become MathML. Figures, tables and their inline colours stay.
"""

from __future__ import annotations

import functools
import html
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

import mlops_lib
from mlops_lib import data
from mlops_lib.engines.warm import without_grammar

with without_grammar():
    import nbformat

# No script, handler, frame, form or foreign picture, should any of the cleaning miss one.
INERT = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; """
    """style-src 'unsafe-inline'; font-src data:; base-uri 'none'; form-action 'none'">"""
)
_TAGS = (
    "a abbr b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 "
    "h4 h5 h6 hr i img ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td "
    "tfoot th thead tr u ul var"
)
_ATTRIBUTES = "align alt class colspan dir headers href id lang open rowspan scope span style title"
# Nothing that could move a box over the rest of the page.
_STYLES = (
    "background background-color border border-bottom border-collapse border-color border-left border-right "
    "border-spacing border-style border-top border-width color font font-family font-size font-style "
    "font-weight height line-height max-height max-width min-width padding padding-bottom padding-left "
    "padding-right padding-top text-align text-decoration vertical-align white-space width"
)
MARK = "\ue000"  # around the number of a formula; of Unicode's private use
_formulas: list[str] = []  # of the page that is being written
_lock = threading.Lock()  # one exporter writes one page at a time


def write_page(nb: nbformat.NotebookNode, path: Path, folder: Path | None = None) -> None:
    """Write the page of an executed notebook; ``folder`` is where it stands, for the pictures that it names."""
    exporter, metadata = load_exporter(), {"name": path.stem, **({"path": str(folder)} if folder else {})}
    with _lock:
        _formulas.clear()
        body, _ = exporter.from_notebook_node(nb, resources={"metadata": metadata})
        body = re.sub(f"{MARK}(\\d+){MARK}", lambda found: _formulas[int(found[1])], body)
    body = re.sub(
        r'(?s)(data-mime-type="text/latex"[^>]*>)(.*?)(</div>)',
        lambda found: found[1] + _to_mathml(html.unescape(found[2]), "block") + found[3],
        body,
    )
    before, head, after = body.partition("<head>")
    after = after.replace(
        "</head>", f"<style>{_read_css()}</style></head>", 1
    )  # below nbconvert's own, which it corrects
    with data.atomic_write(path, "w") as file:
        file.write(f"{before}{head}{INERT}{after}")


@functools.cache
def _read_css() -> str:
    """Return the style of the status page: its classes are left in an output, its own ``<style>`` is taken out."""
    return (Path(mlops_lib.__file__).parent / "programs" / "operate" / "status.css").read_text(encoding="utf-8")


def load_exporter() -> Any:
    """Return the one exporter of this process, its templates compiled: 0.4 s once, then 0.01 s a page."""
    with _lock:
        return _make_exporter()


def _to_mathml(text: str, display: str) -> str:
    """Return a formula in LaTeX as MathML; what cannot be read stays as it was written."""
    from latex2mathml.converter import convert  # noqa: PLC0415 - only where a notebook runs

    try:
        return str(convert(text.strip().strip("$").strip(), display=display))
    except Exception:  # noqa: BLE001 - a formula that nobody can read is shown as its source
        return html.escape(text)


@functools.cache
def _make_exporter() -> Any:
    from nbconvert import HTMLExporter  # noqa: PLC0415 - only where a notebook runs
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath  # noqa: PLC0415 - as above

    def keep(text: str, display: str) -> str:
        _formulas.append(_to_mathml(text, display))
        return f"{MARK}{len(_formulas) - 1}{MARK}"

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return keep(body, "block")

        def inline_math(self, body: str) -> str:
            return keep(body, "inline")

        def latex_environment(self, name: str, body: str) -> str:
            return keep(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block")

    @jinja2.pass_context
    def markdown2html(context: Any, source: str) -> str:
        """As nbconvert's own, with formulas that pass the cleaning as marks."""
        attachments = context.get("cell", {}).get("attachments", {})
        path = context.get("resources", {}).get("metadata", {}).get("path", "")
        renderer = Renderer(escape=False, attachments=attachments, embed_images=True, path=path)
        return str(MarkdownWithMath(renderer=renderer).render(source))

    hidden = {"exclude_input": True, "exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(**hidden, sanitize_html=True, embed_images=True)
    exporter.register_filter("markdown2html", markdown2html)
    exporter.register_filter("clean_html", _make_cleaner())
    exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("")]))
    return exporter


def _make_cleaner() -> Callable[[str], str]:
    """Return what leaves of HTML what only shows something."""
    import bleach  # noqa: PLC0415 - comes with nbconvert, which is only needed where a notebook runs
    from bleach.css_sanitizer import CSSSanitizer  # noqa: PLC0415 - as above

    attributes = set(_ATTRIBUTES.split())

    def allow(tag: str, name: str, value: str) -> bool:
        if name == "src":
            return tag == "img" and value.startswith("data:image/")
        return name in attributes or name.startswith(("data-", "aria-"))

    cleaner = bleach.Cleaner(
        tags=set(_TAGS.split()),
        attributes=allow,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        css_sanitizer=CSSSanitizer(allowed_css_properties=_STYLES.split(), allowed_svg_properties=()),
    )

    def clean(text: str) -> str:
        text = re.sub(r"(?i)<(style|script)\b[^>]*/>", "", text)  # as nbconvert writes one of a heading
        # The words in these are no text; a browser ends them as this does.
        return str(cleaner.clean(re.sub(r"(?is)<(style|script)\b.*?(</\1\s*>|\Z)", "", text)))

    return clean
