"""A name that the log does not have, or does not have yet."""

from __future__ import annotations

import re

from daemon.explain.walk import Happening
from daemon.nearest import by_id, nearest

ID = re.compile(r"[rqo][1-9][0-9]{0,17}")
"""What runners, requests and operations are called. A model can be called so, too."""


class UnknownSubject(Exception):
    """The log has nothing of that name. `known`: the models that it might have meant. `begins`: where what is
    older was pruned, the number of the first event that is left. `comes`: the event that brings it, after
    the moment that was asked about."""

    error, field = "SubjectNotFound", "subject"
    """What the control socket calls it, and where it names what was asked about."""
    nothing = "the log has no"

    def __init__(
        self, subject: str, known: tuple[str, ...] = (), begins: int = 0, comes: Happening | None = None
    ) -> None:
        words = f"{self.nothing} {subject}"
        if comes is not None:
            words = f"there was no {subject} yet: it came with event {comes.seq}"
        elif begins:
            words += f": it begins at event {begins}, and what was before has been pruned"
        elif not ID.fullmatch(subject):
            words += f"; {by_id(subject, known)}"
        super().__init__(words)
        self.comes = comes
        self.subject = subject
        self.nearest = nearest(subject, known, 3)


class UnknownModel(UnknownSubject):
    """The configuration has no model of that name, at the moment that is asked about."""

    error, field = "ModelNotFound", "model"
    nothing = "the configuration has no model"
