"""What the front door and the control socket need of the configuration, which a reload may replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from daemon.config.commands import embeds_only
from daemon.config.config import Config
from daemon.estimates import bounded
from daemon.ports import Card, ModelRow
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
                rows.append(self._row(id))
                if self.config.include_aliases:
                    rows += [self._row(id, alias) for alias in model.aliases]
        return rows

    def row(self, name: str) -> ModelRow | None:
        """The row of one model, listed or not, by id or alias."""
        id = self.config.resolve(name)
        return None if id is None else self._row(id, "" if name == id else name)

    def _row(self, id: str, alias: str = "") -> ModelRow:
        model = self.config.models[id]
        return ModelRow(
            id=alias or id,
            aliases=() if alias else model.aliases,
            name=model.name,
            description=model.description,
            alias_of=id if alias else "",
            metadata=self.config.metadata(id),
        )

    def card(self, model: str) -> Card:
        """What is known of a model."""
        spec = self.config.models.get(model)
        if spec is None:
            return Card()
        file = spec.file
        return Card(
            file=file,
            vision=bool(spec.estimate and spec.estimate.vision),
            embeds=embeds_only(spec.argv) or bool(file and file.embedding_only),
            keep_alive_given=spec.keep_alive_given,
        )

    def launch_options(self, model: str) -> Mapping[str, Option]:
        """The launch options that a request may fix, with their defaults, which give their types."""
        spec = self.config.models.get(model)
        return spec.options if spec is not None else {}

    def tells_loading(self, model: str) -> bool:
        """Whether who waits for a stream of the model is told so in it."""
        return False

    def bounded(self, model: str, options: Mapping[str, Option]) -> dict[str, Option]:
        """The launch options that a request fixes, within what the model's file says of it."""
        spec = self.config.models.get(model)
        if spec is None:
            return dict(options)
        return bounded(options, spec.options, spec.estimate, spec.slots)
