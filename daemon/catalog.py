"""What the front door and the control socket need of the configuration, which a reload may replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daemon.config.config import Config
from daemon.estimates import bounded
from daemon.ports import ModelRow
from events.catalogue import Option


class Catalog:
    """See `daemon.ports.Catalog`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def resolve(self, name: str) -> str | None:
        """The model's id for an id or alias."""
        return self.config.resolve(name)

    def models(self) -> Sequence[ModelRow]:
        """The rows of /v1/models, in the file's order; without unlisted models."""
        rows = []
        for id, model in self.config.models.items():
            if not model.unlisted:
                aliases = tuple(model.aliases)
                rows.append(ModelRow(id, aliases, model.name, model.description))
                if self.config.include_aliases:
                    rows += [ModelRow(alias, (), model.name, model.description) for alias in aliases]
        return rows

    def launch_options(self, model: str) -> Mapping[str, Option]:
        """The launch options that a request may fix, with their defaults, which give their types."""
        spec = self.config.models.get(model)
        return spec.options if spec is not None else {}

    def bounded(self, model: str, options: Mapping[str, Option]) -> dict[str, Option]:
        """The launch options that a request fixes, within what the model's file says of it."""
        spec = self.config.models.get(model)
        if spec is None:
            return dict(options)
        return bounded(options, spec.options, spec.estimate, spec.slots)
