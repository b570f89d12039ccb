"""An mkdocs hook: formulas marked by pymdownx.arithmatex become MathML, which browsers draw without a script."""

import html
import logging
import re

import latex2mathml.converter

# A warning on this logger fails a strict build.
_log = logging.getLogger("mkdocs.hooks.mathml")
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
        # A command the converter does not know comes out as an identifier with its backslash.
        for command in re.findall(r"<m[io]>(\\\w+)</m[io]>", mathml):
            _log.warning("%s: no MathML for %s in the formula %r", page.file.src_uri, command, latex)
        return f'<{tag} class="arithmatex">{mathml}</{tag}>'

    return _FORMULA.sub(replace, content)
