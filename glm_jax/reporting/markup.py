"""HTML and SVG that are escaped by construction: only `Markup` goes in as it is."""

import html
import re
from collections.abc import Iterable
from typing import Union

Child = Union[str, "Markup", Iterable["Child"], None]

_VOID = ("meta", "br")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already."""


def escape(text: str) -> Markup:
    """Text as markup; characters that no document may hold become U+FFFD."""
    return Markup(html.escape(_CONTROL.sub("\ufffd", text)))


def join(*children: Child) -> Markup:
    """Children one after the other; a plain string is escaped, None is left out."""
    return Markup("".join(map(_markup, children)))


def tag(element: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element. `class_` is class, `data_x` is data-x; True is an empty attribute."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if element in _VOID:
        return Markup(f"<{element}{written}/>")
    return Markup(f"<{element}{written}>{join(*children)}</{element}>")


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], **attributes) -> Markup:
    """A table that scrolls sideways where it is too wide; rows hold cells or ready `td`s."""
    header = tag("tr", [tag("th", cell, scope="col") for cell in head])
    body = [tag("tr", [_cell(cell) for cell in row]) for row in rows]
    whole = tag("table", tag("thead", header), tag("tbody", body), **attributes)
    return tag("div", whole, class_="scroll")


def _cell(content: Child) -> Markup:
    is_cell = isinstance(content, Markup) and content.startswith(("<td", "<th"))
    return content if is_cell else tag("td", content)


def _markup(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    return escape(child) if isinstance(child, str) else join(*child)


def _attribute(value: str | float | bool) -> str:
    if value is True:
        return ""
    return escape(value if isinstance(value, str) else f"{value:.6g}")
