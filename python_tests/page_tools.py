"""HTML pages of results: well-formed, with nothing from elsewhere, in the colours of the page."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from kill_tools import HANG

ELSEWHERE = {"script", "link", "iframe", "object", "image"}

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOOK = """
<iframe id="frame" src="{page}" style="width: {width}px; height: 9000px; border: 0"></iframe>
<script>
onload = () => {{
  const body = frame.contentDocument.body, style = frame.contentWindow.getComputedStyle(body);
  document.title = JSON.stringify([body.scrollWidth, body.innerText, style.backgroundColor]);
}};
</script>
"""


def in_browser(page: Path, width: int, dark: bool) -> tuple[int, str, str]:
    """How wide the page is in a window of this width, its text, and its background."""
    look = page.with_suffix(".look.html")
    look.write_text(LOOK.format(page=page.name, width=width))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    scheme = f"--blink-settings=preferredColorScheme={int(not dark)}"
    shown = subprocess.run([CHROMIUM, *options, scheme, look.as_uri()], capture_output=True, text=True, timeout=HANG)
    look.unlink()
    return tuple(json.loads(html.unescape(re.search("<title>(.*?)</title>", shown.stdout, re.DOTALL)[1])))


class Page(HTMLParser):
    """Open tags must be closed in order; notes tags, attributes and text."""

    VOID = ("meta", "img", "br")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(source)
        self.close()
        assert not self.open
        assert not ELSEWHERE & {tag for tag, _ in self.tags}
        svgs = " ".join(re.findall(r"<svg.*?</svg>", source, re.DOTALL))
        assert not re.findall(r"(?:fill|stroke): (?!none|currentColor|var\(|#ffffff; opacity: 0)[^;\"]+", svgs)

    @property
    def figures(self) -> list[str]:
        return [attributes["aria-label"] for tag, attributes in self.tags if tag == "figure" and attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.words.append(words)
