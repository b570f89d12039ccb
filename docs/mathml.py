"""An mkdocs hook: formulas marked by pymdownx.arithmatex become MathML, which browsers draw without a script."""

import html
import logging
import re
import xml.etree.ElementTree as ElementTree

import latex2mathml.converter

# A warning on this logger fails a strict build.
_log = logging.getLogger("mkdocs.hooks.mathml")
_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
ElementTree.register_namespace("", _NAMESPACE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content, page, **_):
    """Replace every formula of a page."""

    def replace(match):
        tag, latex = match.group(1), html.unescape(match.group(2))
        try:
            mathml = latex2mathml.converter.convert(latex, display="block" if tag == "div" else "inline")
        except Exception as error:
            _log.warning("%s: cannot read the formula %r: %s", page.file.src_uri, latex, error)
            return match.group()
        if r"\operatorname*" in latex:
            _log.warning(r"%s: the converter misreads \operatorname* in the formula %r", page.file.src_uri, latex)
        # A command the converter does not know comes out as an identifier with its backslash.
        for command in re.findall(r"<m[io]>(\\\w+)</m[io]>", mathml):
            _log.warning("%s: no MathML for %s in the formula %r", page.file.src_uri, command, latex)
        return f'<{tag} class="arithmatex">{_spaced(mathml)}</{tag}>'

    return _FORMULA.sub(replace, content)


def _spaced(mathml):
    """Set the thin spaces around log and its like: to a browser they are one more factor."""
    root = ElementTree.fromstring(mathml)
    for row in root.iter(f"{{{_NAMESPACE}}}mrow"):
        places = [place for place, child in enumerate(row) if _is_function(child)]
        for place in reversed(places):
            for between in (place + 1, place):
                if 0 < between < len(row) and not _separates(row[between]) and not _separates(row[between - 1]):
                    row.insert(between, ElementTree.Element(f"{{{_NAMESPACE}}}mspace", width="0.167em"))
    return ElementTree.tostring(root, encoding="unicode")


def _is_function(element):
    return element.tag.endswith("}mi") and len(element.text or "") > 1 and element.text.isascii()


def _separates(element):
    return element.tag.endswith(("}mo", "}mspace"))
