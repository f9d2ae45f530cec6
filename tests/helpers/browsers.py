"""Pages of the tools: their elements as written, and as a browser shows them."""

import json
import os
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH (Debian: apt-get install chromium)")


class Elements(HTMLParser):
    """The `elements` of a page, in order: [name, attributes, all the text in it]."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements = []
        self._open = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in ("meta", "input", "img"):
            self._open.append(self.elements[-1])

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def texts(self, tag, **attrs):
        """The texts of all elements of this kind with these attributes (class_, aria_pressed, ...)."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attrs.items()}
        return [
            text
            for name, found, text in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]

    def count(self, tag):
        return sum(name == tag for name, *_ in self.elements)


def data_of(page):
    (text,) = Elements(page.read_text()).texts("script", id="data")
    return json.loads(text)


def browse(page, address="", width=1200, height=800):
    """The Elements of the page as the browser has them after its script has run. `address` is what stands behind #."""
    return browse_url(f"{page.as_uri()}#{address}", page.parent, width, height)


def browse_url(url, folder, width=1200, height=800):
    """As browse() for the page at a URL; the browser keeps its files in the folder."""
    command = [BROWSER, "--headless=new", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")
    result = subprocess.run([*command, url], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return Elements(result.stdout)


def rows(elements):
    """The items in the list, as far as they are drawn."""
    return [
        elements.elements[index + 1][2]
        for index, (tag, attrs, _) in enumerate(elements.elements)
        if tag == "button" and attrs.get("class") == "row"
    ]
