"""What a page is made of, written as markdown or as HTML: titles, texts, grids, pictures, code.

Texts and the cells of grids may hold **bold**, `code`, [links](to) and <br>, nothing else.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BREAK = "<br>"


@dataclass(frozen=True)
class Title:
    """A heading of a level from 1."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Grid:
    """Headings and rows of texts; columns of numbers, all but the first, are set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


@dataclass(frozen=True)
class Points:
    """A list with bullets."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A figure, by the path of its file from the page."""

    title: str
    path: str


@dataclass(frozen=True)
class Code:
    """Lines to type into a shell."""

    text: str


Block = Title | Grid | Points | Picture | Code | str


def markdown(blocks: Iterable[Block]) -> str:
    """Return blocks as markdown; empty ones vanish."""
    return "\n\n".join(text for text in map(_markdown, blocks) if text) + "\n"


def _markdown(block: Block) -> str:
    """Return one block as markdown."""
    match block:
        case Title(text, level):
            return f"{'#' * level} {text}"
        case Grid(head, rows, numbers):
            return grid(head, rows, numbers)
        case Points(texts):
            return "\n".join(f"- {text}" for text in texts)
        case Picture(title, path):
            return f"![{title}]({path})"
        case Code(text):
            return f"```bash\n{text}\n```"
    return block


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """Return a markdown table; columns of numbers, all but the first, are set to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, rule, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def hypertext(blocks: Iterable[Block]) -> str:
    """Return blocks as HTML; the path of a picture goes into it as it is."""
    return "\n".join(text for text in map(_hypertext, blocks) if text)


def _hypertext(block: Block) -> str:
    """Return one block as HTML."""
    match block:
        case Title(text, level):
            return f"<h{level}>{inline(text)}</h{level}>"
        case Grid(head, rows, numbers):
            kind = ' class="numbers"' if numbers else ""
            body = "\n".join(_row("td", row) for row in rows)
            top = _row("th", head)
            return f"<table{kind}><thead>{top}</thead><tbody>\n{body}\n</tbody></table>"
        case Points(texts):
            items = "".join(f"<li>{inline(text)}</li>" for text in texts)
            return f"<ul>{items}</ul>" if items else ""
        case Picture(title, path):
            return f'<img alt="{html.escape(title)}" src="{html.escape(path)}">'
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
    return f"<p>{inline(block)}</p>" if block else ""


def _row(tag: str, texts: Sequence[str]) -> str:
    """Return a row of a table."""
    return f"<tr>{''.join(f'<{tag}>{inline(text)}</{tag}>' for text in texts)}</tr>"


def inline(text: str) -> str:
    """Return a line of text as HTML."""
    text = html.escape(text, quote=False).replace(html.escape(BREAK), BREAK)
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    return re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', text)
