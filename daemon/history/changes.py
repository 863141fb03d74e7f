"""What a configuration would be with something else in it: a policy, a budget, slots, a keep-alive."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from events.catalogue import ConfigView, DeviceView, ModelView

EVERY = "*"
"""Stands for every model."""
NONE: Mapping[str, int] = {}


class Changes(msgspec.Struct, frozen=True):
    """What is different. Called with a configuration's scheduling view it gives the changed one."""

    view: ConfigView | None = None
    """Another configuration altogether, in place of every one that was."""
    policy: str = ""
    budgets_bytes: Mapping[str, int] = NONE
    """By device; one that is not there yet is added, as a GPU."""
    slots: Mapping[str, int] = NONE
    keep_alive_ns: Mapping[str, int] = NONE
    """By model, or for `EVERY` one."""
    max_loaded: int | None = None

    def __call__(self, view: ConfigView) -> ConfigView:
        view = self.view or view
        changed: dict[str, object] = {}
        if self.policy:
            changed["policy"] = self.policy
        if self.max_loaded is not None:
            changed["max_loaded"] = self.max_loaded
        if self.budgets_bytes:
            added = {name: DeviceView(size, name != "host") for name, size in self.budgets_bytes.items()}
            changed["devices"] = {**view.devices, **added}
        if self.slots or self.keep_alive_ns:
            changed["models"] = {name: self._model(name, model) for name, model in view.models.items()}
        return msgspec.structs.replace(view, **changed) if changed else view

    def _model(self, name: str, model: ModelView) -> ModelView:
        slots = self.slots.get(name, self.slots.get(EVERY, model.slots))
        keep = self.keep_alive_ns.get(name, self.keep_alive_ns.get(EVERY, model.keep_alive_ns))
        return msgspec.structs.replace(model, slots=slots, keep_alive_ns=keep)


def with_digests_of(view: ConfigView, recorded: ConfigView) -> ConfigView:
    """A configuration whose models are those of the same name that were recorded: where their digests cannot
    be compared, their commands are taken to be the same."""
    models = {
        name: msgspec.structs.replace(model, digest=recorded.models[name].digest)
        if name in recorded.models
        else model
        for name, model in view.models.items()
    }
    return msgspec.structs.replace(view, models=models)
