"""HTML pages of results: well-formed, with nothing from elsewhere, in the colours of the page."""

import re
from html.parser import HTMLParser

ELSEWHERE = {"script", "link", "iframe", "object", "image"}


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
