"""Which of many names a mistyped one may have meant: with a thousand of them, too, nobody waits for it."""

from __future__ import annotations

from collections.abc import Collection
from difflib import SequenceMatcher, get_close_matches
from heapq import nlargest

from events.limits import NEAREST_LOOKED_AT

IDS_NAMED = 8
"""Ids of models that are named to who gives none of them: two lines of a terminal."""


def nearest(word: str, names: Collection[str], count: int, cutoff: float = 0.6) -> list[str]:
    """At most `count` of the names, the likeliest first; those that are less alike than `cutoff` are not.

    To compare two names takes 0.3 ms where they are alike. So only those are compared that have the most
    letters in common, which takes 10 µs each to find out.
    """
    if len(names) > NEAREST_LOOKED_AT:
        matcher = SequenceMatcher(b=word)

        def letters(name: str) -> float:
            matcher.set_seq1(name)
            return matcher.quick_ratio()

        names = nlargest(NEAREST_LOOKED_AT, names, letters)
    return get_close_matches(word, names, count, cutoff)


def by_id(name: str, known: Collection[str]) -> str:
    """What is said of a name that no model of a log has: which are spelled alike, or else which there are. It
    may be an alias: those are the configuration file's, and no event has them."""
    if not known:
        return "it knows no model"
    near = nearest(name, known, 3)
    if near:
        return f"did you mean {' or '.join(near)}? (A log knows models by their ids, not by their aliases.)"
    ids = ", ".join(sorted(known)[:IDS_NAMED])
    more = f" and {len(known) - IDS_NAMED} more" if len(known) > IDS_NAMED else ""
    return f"a log knows models by their ids, not by their aliases: {ids}{more}"
