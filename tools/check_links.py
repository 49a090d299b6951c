"""Check every link of the built site that needs no network: files, anchors, images.

python tools/check_links.py docs/_build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Anchors of a page, and what it points to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take in what a tag names."""
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


def main(root: Path) -> int:
    """Print what leads nowhere; return the exit status."""
    pages = {path.resolve(): Page(path) for path in root.rglob("*.html") if "webpack-macros" not in path.name}
    n_links, broken = 0, []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            n_links += 1
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.exists() or (url.fragment and known and unquote(url.fragment) not in known.anchors):
                broken.append(f"{path.relative_to(root.resolve())}: {link}")
    print(f"{n_links} links within {len(pages)} pages, {len(broken)} lead nowhere", *sorted(set(broken)), sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
