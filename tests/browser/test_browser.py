"""The built site in a real browser, without a network: navigation, search, formulas, copying, widths, colours.

    pytest -m slow tests/browser

Skipped where there is no Chromium (Debian: `apt-get install chromium`; `$CHROMIUM` names one elsewhere). Pictures of
what was seen are written to the folder `$SITE_PICTURES`, if that is set.
"""

import os
import pathlib
import subprocess
import sys
import time

import pytest
from browser import chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.found() is None, reason="no Chromium on this machine"),
    pytest.mark.xdist_group("browser"),
]

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESKTOP, PHONE = 1280, 390
# One page of each kind: the program, formulas, signatures, code from scripts, wide tables.
SEEN = ("", "concepts/particle-flows/", "api/flows/", "tutorials/write-a-flow/", "results/")

# What sticks out of the window and does not lie in something that scrolls by itself.
OVERFLOW = """(() => {
  const width = document.documentElement.clientWidth, out = [];
  for (const element of document.querySelectorAll('header *, main *, footer *')) {
    const box = element.getBoundingClientRect();
    if (!box.width || box.right <= width + 1 || getComputedStyle(element).position === 'fixed') continue;
    let parent = element.parentElement;
    while (parent && parent !== document.body && getComputedStyle(parent).overflowX === 'visible')
      parent = parent.parentElement;
    if (!parent || parent === document.body) out.push(element.tagName + ' ' + element.textContent.slice(0, 60));
  }
  if (document.documentElement.scrollWidth > width) out.push('the page is ' + document.documentElement.scrollWidth);
  return out.slice(0, 5);
})()"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served."""
    with chromium.served(site) as address:
        yield address


@pytest.fixture
def page(tmp_path):
    """A browser; at the end no page may have complained, nor asked for anything beyond this machine."""
    with chromium.Browser(chromium.found(), tmp_path / "profile") as browser:
        browser.look(DESKTOP)
        yield browser
        assert browser.errors == []


def test_navigation(page, address):
    page.open(f"{address}/")
    tabs = page.run("[...document.querySelectorAll('.md-tabs__link')].map(a => a.textContent.trim())")
    assert tabs == ["Home", "Concepts", "Tutorials", "API", "Results", "Project"]
    page.run("[...document.querySelectorAll('.md-tabs__link')].find(a => a.textContent.trim() === 'API').click()")
    page.until(
        "location.pathname.startsWith('/api/') && document.querySelectorAll('.md-sidebar--primary a').length > 10"
    )
    page.run(
        "[...document.querySelectorAll('.md-sidebar--primary a')].find(a => a.textContent.trim() === 'Flows').click()"
    )
    page.until("location.pathname === '/api/flows/' && document.querySelector('h1').textContent.startsWith('Flows')")


def test_the_drawer_of_a_phone(page, address):
    page.look(PHONE)
    page.open(f"{address}/")
    page.run("document.querySelector('label.md-header__button[for=__drawer]').click()")
    page.until("document.querySelector('.md-sidebar--primary').getBoundingClientRect().left >= 0")
    assert page.run("document.querySelectorAll('.md-sidebar--primary .md-nav__link').length") > 30


def test_search_finds_transport(page, address):
    page.open(f"{address}/")
    page.run("document.querySelector('label.md-search__icon[for=__search]').click()")
    page.run("document.querySelector('.md-search__input').focus()")
    page.call("Input.insertText", text="transport")
    page.until("document.querySelectorAll('.md-search-result__link').length > 2")
    links = page.run("[...document.querySelectorAll('.md-search-result__link')].map(a => new URL(a.href).pathname)")
    assert "/api/transport/" in links[:3], links


def test_formulas_are_drawn_without_a_script_or_a_network(page, address):
    page.open(f"{address}/concepts/particle-flows/")
    assert page.run("document.querySelectorAll('.arithmatex').length") > 20
    assert page.run("[...document.querySelectorAll('.arithmatex')].every(e => e.querySelector('math'))")
    assert page.run("document.body.innerText.includes('\\\\(')") is False
    # A fraction is drawn as one: its numerator stands above its denominator.
    assert page.run(
        "[...document.querySelectorAll('mfrac')].every(f => f.children[0].getBoundingClientRect().bottom "
        "<= f.children[1].getBoundingClientRect().top + 1)"
    )


def test_code_is_copied(page, address):
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"], origin=address)
    page.open(f"{address}/")
    button = "document.querySelector('.md-code__button[data-md-type=copy]')"
    copied = page.until(f"({button}.click(), navigator.clipboard.readText())")
    assert copied.startswith("import flowrl\n")
    assert copied.rstrip().splitlines()[-1].startswith("print(solution)")


def test_no_page_is_wider_than_the_window(page, address, site):
    pages = sorted(path.parent.relative_to(site).as_posix() for path in site.rglob("index.html"))
    assert len(pages) > 30
    wide = {}
    for name in pages:
        page.open(f"{address}/{name}/".replace("/./", "/"))
        for width in (PHONE, DESKTOP):
            page.look(width)
            for _ in range(20):  # the header moves to its new place
                found = page.run(OVERFLOW)
                if not found:
                    break
                time.sleep(0.05)
            if found:
                wide[name, width] = found
    assert wide == {}


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(page, address, width, dark):
    page.look(width, dark=dark)
    pictures = os.environ.get("SITE_PICTURES")
    for name in SEEN:
        page.open(f"{address}/{name}")
        page.until(f"document.body.dataset.mdColorScheme === '{'slate' if dark else 'default'}'")
        red, green, blue = page.run(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
        )
        assert (red + green + blue < 200) if dark else (red + green + blue > 700)
        assert page.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        if pictures:
            file = f"{name.strip('/').replace('/', '-') or 'home'}-{width}-{'dark' if dark else 'light'}.png"
            page.picture(pathlib.Path(pictures) / file)
