"""The documentation as a reader gets it: built once, strictly, then every page is read.

What a browser makes of it is tested in `tests/browser`, the code on it in `test_docs.py`, what must be documented in
`test_public.py`.
"""

import html.parser
import importlib
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib
import types
import typing
import urllib.parse

import lunr
import pytest
import test_programs
import test_public

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LIMIT = 1_000_000  # bytes of a page with its pictures, styles and scripts, before compression
PICTURES = {".png", ".gif", ".svg"}


class _Page(html.parser.HTMLParser):
    """What one page refers to, and what it can be referred to by."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.images, self.nav = set(), [], [], [], []
        self._navs = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "nav":
            self._navs.append("md-nav--primary" in attributes.get("class", ""))
        elif tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
            if any(self._navs):
                self.nav.append(attributes["href"])
        elif tag == "img":
            self.images.append(attributes)
            self.loaded.append(attributes["src"])
        elif tag == "script" and attributes.get("src"):
            self.loaded.append(attributes["src"])
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(attributes["href"])

    def handle_endtag(self, tag):
        if tag == "nav":
            self._navs.pop()


class _Site:
    """Every page of a built site by its address."""

    def __init__(self, folder):
        self.folder = folder
        self.pages = {
            path.relative_to(folder).as_posix(): _Page(path.read_text())
            for path in sorted(folder.rglob("*.html"))
            if path.name != "404.html"  # its links are absolute, for wherever it is shown
        }

    def resolve(self, page, link):
        """Return the file that a link of a page leads to, and the anchor; None for what is elsewhere."""
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            return None, ""
        place = urllib.parse.unquote(parts.path)
        target = (self.folder / page).parent / place if place else self.folder / page
        target = pathlib.Path(os.path.normpath(target))
        target = target / "index.html" if target.is_dir() else target
        return target, urllib.parse.unquote(parts.fragment)


def _dead_links(site):
    for name, page in site.pages.items():
        for link in dict.fromkeys([*page.links, *page.loaded]):
            target, anchor = site.resolve(name, link)
            if target is None:
                continue
            if not target.is_file():
                yield f"{name}: {link} leads nowhere"
                continue
            known = site.pages.get(target.relative_to(site.folder).as_posix())
            if anchor and known is not None and anchor not in known.ids:
                yield f"{name}: {link} has no anchor there"


def _foreign_loads(site):
    for name, page in site.pages.items():
        for link in page.loaded:
            if site.resolve(name, link)[0] is None and not link.startswith("data:"):
                yield f"{name} loads {link} from elsewhere"


def _without_words(site):
    for name, page in site.pages.items():
        for image in page.images:
            if len((image.get("alt") or "").split()) < 3:
                yield f"{name}: {image['src']} needs an alternative text that says what it shows"


def _heavy(site):
    for name, page in site.pages.items():
        files = {site.resolve(name, link)[0] for link in page.loaded} - {None}
        size = sum(file.stat().st_size for file in files | {site.folder / name} if file.is_file())
        if size > LIMIT:
            yield f"{name} weighs {size:,} bytes, more than {LIMIT:,}"


def _reachable(site):
    reached = {site.resolve("index.html", link)[0] for link in site.pages["index.html"].nav}
    return {file.relative_to(site.folder).as_posix() for file in reached if file is not None} & set(site.pages)


def _out_of_reach(site):
    for name in sorted(set(site.pages) - _reachable(site)):
        yield f"{name} is not in the navigation"


def _undocumented(site):
    ids = set().union(*(site.pages[name].ids for name in _reachable(site)))
    for case in test_public._public():
        module, name, _ = case.values
        # A public module that is a name of another has a page of its own, under its own name.
        documented = ids | set(test_public._public_modules()) | set(test_public.INSIDE.values())
        variable = isinstance(getattr(importlib.import_module(module), name), typing.TypeVar)
        module = test_public.INSIDE.get(module, module)
        if f"{module}.{name}" not in documented and not variable:
            yield f"{module}.{name} has no anchor on a page of the navigation"


CHECKS = {check.__name__: check for check in (_dead_links, _foreign_loads, _without_words, _heavy, _out_of_reach)}


# What people type, and the pages that may come first.
QUERIES = {
    "numpyro model": ("api/sample/", "how-to/"),
    "multimodal": ("how-to/",),
    "MALA": ("how-to/",),
    "huggingface": ("start/", "how-to/", "tutorials/rlhf/", "api/rlhf/"),
    "Pendulum": ("start/", "how-to/", "tutorials/data/"),
    "step size": ("how-to/",),
    "bounded parameters": ("how-to/",),
    "evidence": ("how-to/",),
    "arviz": ("how-to/",),
    "resume": ("how-to/",),
    "NaN": ("project/faq/",),
    "baseline": ("results/experiments/", "api/baselines/"),
    "GPU": ("how-to/", "results/performance/"),
    "own critic": ("how-to/",),
    "load agent": ("how-to/",),
    "out of memory": ("project/faq/",),
    "SLURM": ("how-to/",),
    "OGBench": ("start/",),
    "posterior": ("start/",),
    "own algorithm": ("how-to/",),
    "transport": ("api/transport/",),
    "best-of-n": ("how-to/",),
    "getting started": ("start/",),
}


def _found(index):
    """Search the built index as the site does: by its separator, titles above text, pages by their boost."""
    separator, markup = re.compile(index["config"]["separator"]), re.compile(r"<[^>]+>")

    def words(text):
        return " ".join(separator.split(html.unescape(markup.sub(" ", text))))

    pages = [
        ({"ref": page["location"], "title": words(page["title"]), "text": words(page["text"])}, page.get("boost", 1))
        for page in index["docs"]
    ]
    fields = [{"field_name": "title", "boost": 1000}, {"field_name": "text", "boost": 1}]
    search = lunr.lunr("ref", fields, [(page, {"boost": boost}) for page, boost in pages])
    hits = {query: search.search(words(query)) for query in QUERIES}
    return {query: hit[0]["ref"].split("#")[0] if hit else "" for query, hit in hits.items()}


@pytest.mark.thorough
def test_the_built_site(tmp_path):
    """One test, since the build is what costs."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    site = _Site(tmp_path / "site")
    assert len(site.pages) > 30
    faults = {name: list(check(site)) for name, check in CHECKS.items()}
    faults["_undocumented"] = list(_undocumented(site))
    assert {name: found for name, found in faults.items() if found} == {}
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())
    assert any(entry["location"] == "api/transport/#flowrl.transport" for entry in index["docs"])
    found = _found(index)
    assert {query: found[query] for query, page in QUERIES.items() if found[query] not in page} == {}


NAV = '<nav class="md-nav md-nav--primary"><a href="{}">there</a></nav>'
PAGES = {
    "_dead_links": NAV.format("lost/") + '<a href="#nowhere">x</a><img src="lost.png" alt="what it would show">',
    "_foreign_loads": '<script src="https://a.org/a.js"></script><link rel="stylesheet" href="//a.org/a.css">',
    "_without_words": '<img src="a.png"><img src="a.png" alt="a plot">',
    "_heavy": '<img src="heavy.png" alt="a heavy picture indeed">',
    "_out_of_reach": NAV.format("index.html"),
}
FOUND = {"_dead_links": 3, "_foreign_loads": 2, "_without_words": 2, "_heavy": 1, "_out_of_reach": 1}


@pytest.mark.parametrize("name", CHECKS)
def test_a_fault_is_found(name, tmp_path):
    (tmp_path / "index.html").write_text(PAGES[name])
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "heavy.png").write_bytes(bytes(LIMIT))
    if name == "_out_of_reach":
        (tmp_path / "apart.html").write_text("no page leads here")
    assert len(list(CHECKS[name](_Site(tmp_path)))) == FOUND[name]


def test_formulas_become_mathml_or_say_what_is_wrong(caplog):
    hook = runpy.run_path(str(DOCS / "mathml.py"))["on_page_content"]
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="page.md"))
    drawn = hook(r'<span class="arithmatex">\(\alpha \log p + \log_2 p\)</span>', page=page)
    space = '<mspace width="0.167em" />'
    assert f"<mi>α</mi>{space}<mi>log</mi>{space}<mi>p</mi>" in drawn
    assert "<msub><mi>log</mi><mn>2</mn></msub>" in drawn  # no space inside
    assert not caplog.records
    for wrong in (r"\operatorname*{argmin}_q", r"\unheardof x"):
        caplog.clear()
        hook(f'<div class="arithmatex">\\[{wrong}\\]</div>', page=page)
        assert [record.levelname for record in caplog.records] == ["WARNING"], wrong


def _imports(name, text):
    return re.search(rf"^ *(?:from {name} import|import {name}\b)", text, re.MULTILINE)


def _is_run(script, tests):
    """Whether the tests name a script's file, import it, or do so with a script beside it that imports it."""
    if script.parent == test_programs.SNIPPETS:
        return script.stem in test_programs.PROGRAMS
    if script.is_relative_to(ROOT / "flowrl"):  # a program: its room is imported, its command run
        return f"flowrl.scripts import {script.parent.name}" in tests or f"flowrl.scripts.{script.parent.name}" in tests
    if re.search(rf"\b{script.name}\b", tests) or _imports(script.stem, tests):
        return True
    beside = [other for other in script.parent.glob("*.py") if _imports(script.stem, other.read_text())]
    return any(_is_run(other, tests) for other in beside)


def test_a_script_that_no_test_runs_is_noticed(tmp_path):
    (tmp_path / "alone.py").write_text("")
    (tmp_path / "part.py").write_text("")
    (tmp_path / "whole.py").write_text("from part import piece")
    tests = "# alone, part\nrun('whole.py')"
    assert not _is_run(tmp_path / "alone.py", tests)
    assert _is_run(tmp_path / "whole.py", tests)
    assert _is_run(tmp_path / "part.py", tests)
    assert _is_run(tmp_path / "alone.py", "from alone import main")
    assert not _is_run(test_programs.SNIPPETS / "nine.py", "nine.py")


def test_all_python_on_the_pages_is_run_or_comes_from_a_script_that_is():
    tests = "\n".join(path.read_text() for path in ROOT.joinpath("tests").rglob("*.py"))
    for path in SOURCES:
        text = path.read_text()
        # `test_docs.py` runs fences that say python; code that hides in another one would not be run.
        for kind, code in re.findall(r"^ *(?:```|~~~)([^\n]*)\n(.*?)^ *(?:```|~~~) *$", text, re.MULTILINE | re.DOTALL):
            assert kind in ("python", "bash", "bibtex", "text", ""), (path.name, kind)
            assert kind == "python" or not re.search(r"^(import|from) \w+", code, re.MULTILINE), (path.name, code)
        for script in re.findall(r'--8<-- "(.+?\.py)', text):
            assert _is_run(ROOT / script, tests), (path.name, script)


def test_every_picture_is_shown_and_every_result_is_named():
    text = "\n".join(path.read_text() for path in SOURCES)
    results = "\n".join(path.read_text() for path in DOCS.joinpath("results").glob("*.md"))
    for path in DOCS.rglob("*"):
        if path.suffix in PICTURES:
            assert path.name in text, f"{path.relative_to(ROOT)} is on no page"
        elif path.is_file() and path.suffix != ".md" and path.is_relative_to(DOCS / "results"):
            inside = path.relative_to(DOCS / "results")
            # The options and data of a run lie beside its results.
            folder = re.search(rf"docs/results/{inside.parent}/[`*]", results)
            named = (inside.as_posix(), (inside.parent / "results.csv").as_posix())
            assert folder or any(name in results for name in named), f"no page of docs/results names {inside}"


def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}" in (DOCS / "project" / "citation.md").read_text()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_pictures_of_the_readme_exist():
    for link in re.findall(r"!?\[[^\]]*\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert "://" in link or (ROOT / link).exists(), f"README.md: {link} leads nowhere"


def test_pages_install_from_a_checkout():
    """No index is known to hold the distribution."""
    for path in SOURCES:
        assert "flowrl-transport[" not in path.read_text(), path.name
