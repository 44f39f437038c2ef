"""Write sizes and foreign text for people."""

from __future__ import annotations

import re

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""In the text of a token: bytes that are no whole character."""
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def bytes_text(count: int) -> str:
    """Format a number of bytes: `12.3 MB`, or `1.50 GB` from a thousand million bytes; small ones as `4.2 kB`, `17 B`.

    >>> bytes_text(17), bytes_text(4_200), bytes_text(12_340_000), bytes_text(1_500_000_000)
    ('17 B', '4.2 kB', '12.3 MB', '1.50 GB')
    """
    if count >= 1e9:
        return f"{count / 1e9:,.2f} GB"
    if count >= 1e5:
        return f"{count / 1e6:,.1f} MB"
    return f"{count / 1e3:,.1f} kB" if count >= 1000 else f"{count:,.0f} B"


def duration_text(seconds: float) -> str:
    """Format a time for people.

    >>> duration_text(7.2), duration_text(200), duration_text(9000)
    ('7 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def range_text(least: float, most: float) -> str:
    """Format a range of times for people.

    >>> range_text(7.2, 31), range_text(40, 200), range_text(100, 110)
    ('7 to 31 s', '40 s to 3 min', '2 min')
    """
    low, high = duration_text(least), duration_text(most)
    if low == high:
        return high
    same = low.split()[1] == high.split()[1]
    return f"{low.split()[0] if same else low} to {high}"


def rate_text(done: float, seconds: float, unit: str) -> str:
    """Format a rate; of fewer than one a second, say how long one takes.

    >>> rate_text(30, 10, "edits"), rate_text(1, 13, "edits"), rate_text(24_340, 10, "tokens")
    ('3.0 edits/s', '13 s/edit', '2,434 tokens/s')
    """
    rate = done / max(seconds, 1e-9)
    if rate >= 1:
        return f"{rate:,.{int(rate < 10)}f} {unit}/s"
    each = seconds / done
    return f"{each:,.{int(each < 10)}f} s/{counted_unit(1, unit)}"


def counted_unit(count: int, unit: str) -> str:
    """The unit of a count: its plural, or for one the singular.

    >>> counted_unit(1, "edits"), counted_unit(2, "edits")
    ('edit', 'edits')
    """
    return unit.removesuffix("s") if count == 1 else unit


def plain_json(text: str) -> str:
    """Escape the control characters that JSON leaves as they are (U+007F to U+009F); the value stays the same.

    >>> plain_json('["\x9b2J"]')
    '["\\\\u009b2J"]'
    """
    return text.translate(_ESCAPED)


def printable(text: str) -> str:
    """Remove control sequences from text that others wrote: it must not move the cursor or set a title.

    Terminal sequences that begin with ESC go as a whole, all other C0 and C1 characters one by one; tabs and line
    breaks stay.

    >>> printable("\\x1b[31mred\\x1b[0m\\x07 \\x9b2J\\tend")
    'red 2J\\tend'
    """
    return _CONTROL.sub("", text)


def name_of_path(path: str) -> str:
    """The last part of a model's path or Hub name, for titles; of a model with an adapter both names.

    >>> name_of_path("/models/gpt2/"), name_of_path("openai-community/gpt2"), name_of_path("a/gpt2 + b/lora")
    ('gpt2', 'gpt2', 'gpt2 + lora')
    """
    return " + ".join(part.rstrip("/").rsplit("/", 1)[-1] or part for part in path.split(" + "))
