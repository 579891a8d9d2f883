"""What may have been meant by a word that is none of those there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def close_names(word: str, names: Iterable[str]) -> list[str]:
    """Names that are almost ``word``, the most likely first, three at most; a beginning counts as almost."""
    from difflib import get_close_matches  # slow to import, and mostly not needed

    names = list(names)
    begun = [name for name in names if len(word) > 1 and name.startswith(word)]
    return list(dict.fromkeys([*begun, *get_close_matches(word, names, n=2)]))[:3]


def did_you_mean(word: str, names: Iterable[str]) -> str | None:
    """The question, for a hint; None where no name is close."""
    close = [f"'{name}'" for name in close_names(word, names)]
    return f"did you mean {' or '.join(close)}?" if close else None
