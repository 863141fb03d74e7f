"""What the front door and the control socket need of the configuration, which a reload may replace."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from daemon.config.commands import embeds_only
from daemon.config.config import Config
from daemon.config.filters import Filters
from daemon.config.peers import Peer, listed
from daemon.config.selectors import Look, Profile, choose
from daemon.estimates import bounded
from daemon.ollama.names import LATEST
from daemon.ports import Access, Card, ModelRow, PeerModel, Served
from events.catalogue import Option
from events.limits import S
from statemachines.runner import RunnerState
from statemachines.state import State


class Catalog:
    """See `daemon.ports.Catalog`."""

    def __init__(self, config: Config, state: State | None = None) -> None:
        """`state`: what selectors go by, and the profile that is in use."""
        self.config = config
        self._state = state
        self._access = Access()
        self._served: dict[str, Served] = {}
        self._direct: dict[str, Served] = {}
        self._prepared: Config | None = None
        self._at_peers: Counter[tuple[str, str]] = Counter()
        """Requests that run at other servers, by peer and model: the log has none of them."""

    @property
    def profile(self) -> str:
        """The name of the profile in use; "": none, or one that the configuration has no more."""
        name = "" if self._state is None else self._state.profile
        return name if name in self.config.profiles else ""

    @property
    def _pins(self) -> Mapping[str, str]:
        """What the profile in use says of names."""
        profile = self.config.profiles.get(self.profile)
        return {} if profile is None else profile.pins

    def profiles(self) -> Mapping[str, Profile]:
        """Those of the configuration, by name."""
        return self.config.profiles

    @property
    def access(self) -> Access:
        """Who may come in."""
        if self._prepared is not self.config:
            self._prepare()
        return self._access

    def served(self, target: str) -> Served | None:
        """What is known of requests for a target that is a model here, by id or alias; None: it is none."""
        if self._prepared is not self.config:
            self._prepare()
        return self._served.get(target)

    def _prepare(self) -> None:
        """What every request asks for is made once for each configuration."""
        config = self._prepared = self.config
        self._access = access(config)
        self._served = {}
        for name, id in {**config.aliases, **{id: id for id in config.models}}.items():
            spec = config.models[id]
            self._served[name] = Served(id, spec.options, spec.filters.of(name), spec.send_loading_state)
        pinned = {name for profile in config.profiles.values() for name in profile.pins}
        other = pinned | config.selectors.keys()
        self._direct = {
            name: served
            for name, served in self._served.items()
            if name not in other and not name.endswith(LATEST) and served.filters is None
        }

    def direct(self, name: str) -> Served | None:
        """See `daemon.ports.Catalog`."""
        if self._prepared is not self.config:
            self._prepare()
        return self._direct.get(name)

    def target(self, name: str) -> str:
        """What a name stands for now: what the profile in use says ("": nothing), a selector's target, or the
        name itself. Ask once for a request, and go on with the answer: another moment may have another."""
        if name.endswith(LATEST):
            name = self._untagged(name)
        name = self._pins.get(name, name)
        selector = self.config.selectors.get(name)
        return name if selector is None else choose(selector, self._look)

    def _untagged(self, name: str) -> str:
        """What a name that ends in `:latest` means: what is configured so, else what has it without that end,
        which Ollama's lists and clients add to any name."""
        config = self.config
        if name in self._pins or name in config.selectors or config.resolve(name) or config.peer(name):
            return name
        return name.removesuffix(LATEST)

    def _look(self, target: str) -> Look:
        id, state = self.config.resolve(target), self._state
        if id is None or state is None:
            found = self.config.peer(target)
            return Look(busy=self._at_peers[found[0].id, found[1]]) if found else Look()
        runners = state.models.get(id, {}).values()
        demands = state.wanted[id].values() if id in state.wanted else ()
        return Look(
            ready=any(runner.state is RunnerState.ready for runner in runners),
            loading=any(runner.state is RunnerState.loading for runner in runners),
            busy=sum(len(r.held) for r in runners) + sum(len(demand.waiting) for demand in demands),
        )

    def resolve(self, name: str) -> str | None:
        """The model's id for an id, an alias, or what stands for one; a `target` is resolved as it is."""
        id = self.config.resolve(name)
        if id is None and name.endswith(LATEST):
            name = self._untagged(name)
            id = self.config.resolve(name)
        return id or self.config.resolve(self.target(name))

    def names(self) -> Sequence[str]:
        """Every name that can be asked for: ids, aliases, selectors, what the profile in use pins, and what
        peers have."""
        config = self.config
        names = [*config.models, *config.aliases, *config.selectors, *self._pins]
        for peer in config.peers.values():
            names += [*peer.models, *map(peer.qualified, peer.models)]
        return names

    def models(self) -> Sequence[ModelRow]:
        """The rows of /v1/models, in the file's order, those of peers last; without unlisted models."""
        rows = []
        for id, model in self.config.models.items():
            if not model.unlisted:
                rows.append(self._row(id))
                if self.config.include_aliases:
                    rows += [self._row(id, alias) for alias in model.aliases]
        selectors = self.config.selectors
        rows += [self._selector_row(id) for id in selectors if not selectors[id].unlisted]
        shown = {row.id for row in rows}
        pins = self._pins
        known = (name for name, target in pins.items() if target and not self.config.resolve(name))
        rows += [self._pin_row(name, pins[name]) for name in known if name not in shown]
        taken = {*self.config.models, *self.config.aliases, *self.config.selectors, *pins}
        return rows + [_peer_row(*found) for found in listed(self.config.peers, taken)]

    def row(self, name: str) -> ModelRow | None:
        """The row of one model or selector, listed or not, by id or alias; of a peer's, by any name of it."""
        if name.endswith(LATEST):
            name = self._untagged(name)
        if name in self.config.selectors:
            return self._selector_row(name)
        id = self.config.resolve(name)
        if id is not None:
            return self._row(id, "" if name == id else name)
        if target := self._pins.get(name):
            return self._pin_row(name, target)
        found = self.config.peer(name)
        return None if found is None else _peer_row(name, *found)

    def _selector_row(self, id: str) -> ModelRow:
        found = self.config.selectors[id]
        kind: dict[str, object] = {"type": "selector", "strategy": found.strategy}
        kind["targets"] = list(found.targets)
        if found.strategy == "spillover":
            kind["spillover"] = found.spillover
        behind = self._behind(id)
        return ModelRow(
            id, (), found.name, found.description, metadata=found.metadata, kind=kind, behind=behind
        )

    def _pin_row(self, name: str, target: str) -> ModelRow:
        return ModelRow(name, kind={"type": "profile"}, behind=self._behind(target))

    def _behind(self, target: str) -> tuple[str, ...]:
        """The ids of the models here that a selector, or a pin's target, may stand for."""
        selector = self.config.selectors.get(target)
        targets = (target,) if selector is None else selector.targets
        if selector is not None and selector.strategy == "pin":
            targets = targets[:1]
        return tuple(id for each in targets if (id := self.config.resolve(each)))

    def _row(self, id: str, alias: str = "") -> ModelRow:
        model = self.config.models[id]
        return ModelRow(
            id=alias or id,
            aliases=() if alias else model.aliases,
            name=model.name,
            description=model.description,
            alias_of=id if alias else "",
            metadata=self.config.metadata(id, self._port(id)),
            more=model.capabilities.row(),
        )

    def _port(self, id: str) -> int | None:
        """The port of a runner of the model's that is ready."""
        runners = {} if self._state is None else self._state.models.get(id, {})
        ports = (runner.port for runner in runners.values() if runner.state is RunnerState.ready)
        return next(filter(None, ports), None)

    def card(self, model: str) -> Card:
        """What is known of a model."""
        spec = self.config.models.get(model)
        if spec is None:
            return Card()
        file, said = spec.file, spec.capabilities
        return Card(
            file=file,
            vision="image" in said.input or bool(spec.estimate and spec.estimate.vision),
            audio="audio" in said.input,
            tools=said.tools or bool(file and file.tools),
            embeds=embeds_only(spec.argv) or bool(file and file.embedding_only),
            keep_alive_given=spec.keep_alive_given,
        )

    def launch_options(self, model: str) -> Mapping[str, Option]:
        """The launch options that a request may fix, with their defaults, which give their types."""
        spec = self.config.models.get(model)
        return spec.options if spec is not None else {}

    def peer(self, name: str) -> PeerModel | None:
        """The model of a peer that a target is."""
        found = self.config.peer(name)
        if found is None:
            return None
        peer, model = found
        return PeerModel(peer.id, peer.url, model, peer.api_key, peer.timeouts.first_byte_ns / S)

    @contextmanager
    def at_peer(self, peer: PeerModel) -> Iterator[None]:
        """Count a request as one that runs there, for the selectors that have it as a target."""
        self._at_peers[peer.id, peer.model] += 1
        try:
            yield
        finally:
            self._at_peers[peer.id, peer.model] -= 1

    def missing(self, model: str) -> str:
        """See `daemon.ports.Catalog`."""
        spec = self.config.models.get(model)
        if spec is None or not spec.missing or (self._state is not None and model in self._state.models):
            return ""
        return spec.missing

    def loads_nothing(self, path: str) -> bool:
        """Whether a request for this path below a model must not have the model loaded."""
        return any(re.search(pattern, path) for pattern in self.config.ignore_paths)

    def filters(self, name: str) -> Filters | None:
        """What is done to the body of a request for a `target`, an id or alias; None: nothing.
        `daemon.config.filters.apply` does it."""
        return self.config.filters(name)

    def bounded(self, model: str, options: Mapping[str, Option]) -> dict[str, Option]:
        """The launch options that a request fixes, within what the model's file says of it."""
        spec = self.config.models.get(model)
        if spec is None:
            return dict(options)
        return bounded(options, spec.options, spec.estimate, spec.slots)


def _peer_row(name: str, peer: Peer, model: str) -> ModelRow:
    """As llama-swap lists it."""
    kind = {"type": "peer", "peerID": peer.id}
    return ModelRow(name, name=f"{peer.id}: {model}", kind=kind, peer=peer.id)


def access(config: Config) -> Access:
    """What the configuration says of who may come in. The name that it listens on is a name of its own."""
    listens = config.listen.rpartition(":")[0].strip("[]")
    return Access(
        api_keys=config.api_keys,
        hosts=(listens, *config.hosts),
        origins=config.cors_origins,
        body_bytes=config.body_bytes,
    )
