"""What strangers' notebooks hold, made harmless: HTML without scripts or loads, and pictures that are PNG."""

import base64
import binascii
import re
from functools import cache
from html import unescape

from bleach.css_sanitizer import CSSSanitizer
from bleach.sanitizer import Cleaner

# The browser's own refusal, should anything slip through: no script, nothing from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TAGS = frozenset({
    "a", "abbr", "b", "blockquote", "br", "caption", "cite", "code", "col", "colgroup", "dd", "del",
    "details", "div", "dl", "dt", "em", "figcaption", "figure", "h1", "h2", "h3", "h4", "h5", "h6", "hr",
    "i", "img", "ins", "kbd", "li", "mark", "ol", "p", "pre", "q", "s", "samp", "small", "span", "strong",
    "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "tt", "u", "ul", "var",
})  # fmt: skip
_ATTRIBUTES = {
    "img": {"alt", "title"},
    "abbr": {"title"},
    "td": {"colspan", "rowspan", "align"},
    "th": {"colspan", "rowspan", "align", "scope"},
    "ol": {"start"},
}
_STYLES = frozenset(
    ["text-align", "vertical-align", "white-space", "font-weight", "font-style", "text-decoration", "color"]
)  # none of them loads anything or moves text over other text
_CLASSES = {  # of our tables and of highlighted code; others could pass for our badges and banners
    "table": re.compile("mmlib"),
    "div": re.compile("highlight"),
    "span": re.compile("[a-z][a-z0-9]{0,2}"),
}
_LINK = re.compile(r"(?:https?://|mailto:)[^\x00-\x20]*|[^:\x00-\x20]*", re.IGNORECASE)
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]+")
_DEPTH = 300
_TOO_DEEP = "<p>[HTML that is nested too deeply is left out]</p>"
_NESTING = re.compile(r"<(/?)(?!(?:br|hr|img|col|p|li|dt|dd|t[dhr]|thead|tbody|tfoot)\b)[a-z]", re.IGNORECASE)
_CODE = re.compile(r"<(script|style)\b", re.IGNORECASE)


def harmless_html(text: str) -> str:
    """HTML with prose, tables, links and embedded pictures alone; no script, style sheet, form or load.

    Tables of `mmlib.reporting` and highlighted code stay as they are.
    """
    text = _without_code(text)
    return _TOO_DEEP if _is_deep(text) else _cleaner().clean(text)


def _is_deep(text: str) -> bool:
    """Whether elements are nested more than `_DEPTH` deep: the parser's time grows with the square."""
    depth = 0
    for tag in _NESTING.finditer(text):
        depth += -1 if tag[1] else 1
        if depth > _DEPTH:
            return True
    return False


def _without_code(text: str) -> str:
    """HTML less its scripts and style sheets, whose content the cleaner would show as text."""
    parts, start = [], 0
    while begin := _CODE.search(text, start):
        parts.append(text[start : begin.start()])
        end = re.compile(rf"</{begin[1]}\s*>", re.IGNORECASE).search(text, begin.end())
        start = end.end() if end else len(text)
    return "".join([*parts, text[start:]])


def png_of(text: str) -> bytes | None:
    """The PNG in a base64 text; None if it is none."""
    try:
        png = base64.b64decode(text)
    except (ValueError, binascii.Error):
        return None
    return png if is_png(png) else None


def is_png(data: bytes) -> bool:
    """Whether bytes start as a PNG does."""
    return data.startswith(_SIGNATURE)


def well_formed(text: str) -> str:
    """Text that can be written as UTF-8: halves of characters, which JSON can hold, become `?`."""
    return text.encode("utf-8", "replace").decode()


@cache
def _cleaner() -> Cleaner:
    return Cleaner(
        tags=_TAGS,
        attributes=_is_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        css_sanitizer=CSSSanitizer(allowed_css_properties=_STYLES, allowed_svg_properties=()),
    )


def _is_allowed(tag: str, name: str, value: str) -> bool:
    if name == "class":
        return tag in _CLASSES and bool(_CLASSES[tag].fullmatch(value))
    if name == "href":
        return tag == "a" and bool(_LINK.fullmatch(unescape(value)))
    if name == "src":
        return tag == "img" and bool(_PICTURE.fullmatch(value))
    return name == "style" or name in _ATTRIBUTES.get(tag, ())
