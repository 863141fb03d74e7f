"""`runnerd schema`: the file as JSON Schema 2020-12, for editors.

What the readers know is stated there in code, which also checks what a schema cannot; a test holds the two
together, key by key. Where a value is not text, a macro may stand for it.
"""

from __future__ import annotations

from typing import Any

from daemon.config.capabilities import MODALITIES
from daemon.config.selectors import STRATEGIES
from events.limits import (
    API_KEYS,
    CONFIG_DURATION_MAX_S,
    CONFIG_INTEGER_MAX,
    CONFIG_MODELS,
    CONFIG_SIZE_MAX_BYTES,
    EVICT_COST_MAX,
    INSTANCES_MAX,
    PRIORITY_MAX,
    QUEUE_MAX,
    REQUESTS_MAX,
    SHARDS_MAX,
    SLOTS_MAX,
    SWAP_PATIENCE,
    SWAP_PATIENCE_MAX,
)
from statemachines.policy import POLICIES

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
_MACRO: Schema = {"type": "string", "pattern": r"\$\{[^}]+\}"}
_GIVEN: Schema = {"type": ["string", "number", "boolean"]}
_TEXT: Schema = {"type": [*_GIVEN["type"], "null"]}
_FLAG: Schema = {"anyOf": [{"type": ["boolean", "null"]}, {"enum": ["yes", "no", "on", "off"]}, _MACRO]}
_DURATION: Schema = {
    "anyOf": [
        {"type": ["integer", "null"], "minimum": 0, "maximum": CONFIG_DURATION_MAX_S},
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h|d))+$"},
        _MACRO,
    ]
}
_SIZE: Schema = {
    "anyOf": [
        {"type": ["integer", "null"], "minimum": 0, "maximum": CONFIG_SIZE_MAX_BYTES},
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)? ?([KMGT]i?)?B$"},
        _MACRO,
    ]
}
_TEXTS: Schema = {"type": ["array", "null"], "items": _GIVEN}
_LIST: Schema = {"type": "array", "items": _GIVEN}
_ANY: Schema = {}

_IGNORED = "Has no effect here."


def _integer(least: int, most: int) -> Schema:
    return {"anyOf": [{"type": ["integer", "null"], "minimum": least, "maximum": most}, _MACRO]}


def _choice(*words: str) -> Schema:
    return {"anyOf": [{"enum": [*words, None]}, _MACRO]}


def _like(pattern: str) -> Schema:
    """Text of a form; a macro somewhere in it may stand for what is not seen."""
    return {"anyOf": [{"type": "string", "pattern": pattern}, _MACRO]}


def _mapping(of: Schema, **more: Any) -> Schema:
    """Names that the user chooses, each with such a value."""
    return {"type": ["object", "null"], "additionalProperties": of, **more}


def _section(keys: dict[str, tuple[Schema, str]], **more: Any) -> Schema:
    """These keys and no others, each with a sentence about it. Where one is required, it is no null."""
    properties = {
        key: {**schema, "description": text} if text else schema for key, (schema, text) in keys.items()
    }
    kind = "object" if "required" in more else ["object", "null"]
    return {"type": kind, "properties": properties, "additionalProperties": False, **more}


_FILTERS = _section(
    {
        "stripParams": (
            {"anyOf": [_TEXT, _TEXTS]},
            "Names that are taken out of a request's JSON, with commas between them or as a list.",
        ),
        "strip_params": ({"anyOf": [_TEXT, _TEXTS]}, "An older name of stripParams."),
        "setParams": (_mapping(_ANY), "What is put into a request's JSON, whatever the client said."),
        "setParamsByID": (
            _mapping(_mapping(_ANY, type="object")),
            "The same for those who ask by that name, which is another alias.",
        ),
    }
)
_TIMEOUTS = _section(
    {
        "connect": (_DURATION, "Until a connection is up (of peers)."),
        "keepalive": (_DURATION, _IGNORED),
        "responseHeader": (_DURATION, "Until the head of an answer has come: firstByteTimeout."),
        "tlsHandshake": (_DURATION, _IGNORED),
        "expectContinue": (_DURATION, _IGNORED),
        "idleConn": (_DURATION, _IGNORED),
    }
)
_MACROS = _mapping(
    {"type": ["string", "number", "boolean"]}, propertyNames={"pattern": "^[A-Za-z0-9_-]{1,63}$"}
)
_LIMITS: dict[str, tuple[Schema, str]] = {
    "healthCheckTimeout": (_DURATION, "How long a load may take. Default: 120 s."),
    "loadStallTimeout": (_DURATION, "How long a load may show no progress; 0: no such limit."),
    "unloadTimeout": (
        _DURATION,
        "How long requests that run may go on when their runner is to go. Default: 30 s.",
    ),
    "queueTimeout": (_DURATION, "How long a request may wait for its turn; 0: no limit."),
    "firstByteTimeout": (_DURATION, "How long a runner may take until an answer begins; 0: no limit."),
    "requestTimeout": (_DURATION, "How long a request may take in all; 0: no limit."),
    "maxLease": (_DURATION, "How long a client may hold a slot by itself; 0: until others wait for it."),
    "sendLoadingState": (_FLAG, "Tell who waits for a load so, in the reasoning of a streamed chat."),
}
_ENV: Schema = {"type": ["array", "null"], "items": _like("^[^=]+=")}
_ENDPOINT: Schema = {"anyOf": [_NULL, _like("^(/|none$)")]}
_DEVICE: Schema = {"pattern": "^(host|gpu(0|[1-9][0-9]{0,2}))$"}
_SHARD = _section(
    {
        "cmd": (_GIVEN, "The command of this process; ${PORT} is its own leased port."),
        "env": (_ENV, "NAME=value, over the model's."),
        "checkEndpoint": (_ENDPOINT, "What answers 200 when it is up; none: it is up when it listens."),
    },
    required=["cmd"],
)
_MODEL = _section(
    {
        "cmd": (
            _GIVEN,
            "The command that starts the runner. ${PORT} is a leased port, ${SOCKET} a leased socket.",
        ),
        "shards": (
            {"type": ["array", "null"], "maxItems": SHARDS_MAX, "items": {"anyOf": [_GIVEN, _SHARD]}},
            "Further commands that, with cmd, form one runner.",
        ),
        "cmdStop": (_TEXT, "A command that stops it; ${PID} is its process. Default: SIGTERM."),
        "proxy": (
            {"anyOf": [_NULL, _like("^(http://[^/]|unix:/)")]},
            "Where it answers: http://HOST:PORT/PREFIX or unix:/PATH.",
        ),
        "checkEndpoint": (_ENDPOINT, "What answers 200 when it is ready; none: it is ready when it listens."),
        "trustProbe": (
            _FLAG,
            "Its port belongs to no process of runnerd's. Default: of a container's and another host's.",
        ),
        "env": (_ENV, "NAME=value, over the daemon's own environment."),
        "ttl": (
            {"anyOf": [_DURATION, {"const": -1}]},
            "Idle time until it is unloaded; 0: never; -1: globalTTL.",
        ),
        "slots": (_integer(1, SLOTS_MAX), "Requests that one runner serves at once."),
        "concurrencyLimit": (
            _integer(0, REQUESTS_MAX),
            "Requests above which the next gets 429; 0: no such limit.",
        ),
        "memory": (
            {"anyOf": [_SIZE, _mapping(_SIZE, propertyNames=_DEVICE)]},
            "What a runner takes: a size, or sizes by device. Default: learned, or as its file says.",
        ),
        "options": (
            _mapping({"type": ["string", "integer", "boolean"]}),
            "Launch options and defaults, for use as ${name} in cmd and env; a request may ask for others.",
        ),
        "acceptLargerContext": (_FLAG, "A runner with a larger num_ctx serves requests for a smaller one."),
        "instances": (
            {
                "anyOf": [
                    _integer(1, INSTANCES_MAX),
                    _section(
                        {
                            "min": (_integer(1, INSTANCES_MAX), "Loaded as soon as one is."),
                            "max": (_integer(1, INSTANCES_MAX), "Loaded while there is a queue and room."),
                        }
                    ),
                ]
            },
            "Runners of one launch spec.",
        ),
        "priority": (_integer(-PRIORITY_MAX, PRIORITY_MAX), "Among waiters the higher one goes first."),
        "aliases": (_TEXTS, "Other names for it."),
        "useModelName": (_TEXT, "Replaces the model's name in what is sent to the runner."),
        "filters": (_FILTERS, "What is taken out of a request's JSON and put into it."),
        "unlisted": (_FLAG, "Not in /v1/models; served all the same."),
        "name": (_TEXT, "Shown in /v1/models."),
        "description": (_TEXT, "Shown in /v1/models."),
        "metadata": (_mapping(_ANY), "Anything; shown with the model."),
        "capabilities": (
            _section(
                {
                    "in": (
                        {"type": ["array", "null"], "items": {"enum": list(MODALITIES)}},
                        "What it understands.",
                    ),
                    "out": (
                        {"type": ["array", "null"], "items": {"enum": list(MODALITIES)}},
                        "What it generates.",
                    ),
                    "tools": (_FLAG, "It calls functions."),
                    "reranker": (_FLAG, "It answers /v1/rerank."),
                    "context": (_integer(0, CONFIG_INTEGER_MAX), "Tokens of context."),
                }
            ),
            "Shown in lists of models.",
        ),
        "macros": (_MACROS, "The model's own; they replace global ones of the same name."),
        "timeouts": (_TIMEOUTS, "Of llama-swap's, responseHeader counts."),
        "compat": (_ANY, _IGNORED),
        **_LIMITS,
    },
    required=["cmd"],
)
_GROUPS = _mapping(
    _section(
        {
            "members": (_TEXTS, "Ids of models, each in one group only."),
            "swap": (_FLAG, "One member at a time. Default: true."),
            "exclusive": (_FLAG, "Other groups go when a member is loaded. Default: true."),
            "persistent": (_FLAG, "Loads of other groups evict none of its members."),
        },
        type="object",
    )
)
_MATRIX = _section(
    {
        "sets": (_mapping(_GIVEN), 'Expressions of what may be loaded together: "(a | b) & c", "+other".'),
        "vars": (_mapping(_GIVEN), "Short names for ids."),
        "evict_costs": (_mapping(_integer(1, EVICT_COST_MAX)), "What it costs to lose a model. Default: 1."),
    }
)
_ROUTING = _section(
    {
        "router": (
            _section(
                {
                    "use": (_choice("group", "matrix"), "Which of the settings holds."),
                    "settings": (
                        _section(
                            {"groups": (_GROUPS, "As at the top."), "matrix": (_MATRIX, "As at the top.")}
                        ),
                        "",
                    ),
                }
            ),
            "What may be loaded together.",
        ),
        "scheduler": (
            _section(
                {
                    "use": (_choice("fifo"), "The order is `policy`'s."),
                    "settings": (
                        _section(
                            {
                                "fifo": (
                                    _section(
                                        {
                                            "priority": (
                                                _mapping(_integer(-PRIORITY_MAX, PRIORITY_MAX)),
                                                "Priorities of models; a model's own goes before.",
                                            )
                                        }
                                    ),
                                    "",
                                )
                            }
                        ),
                        "",
                    ),
                }
            ),
            "Priorities of models.",
        ),
    }
)
_SELECTORS = _mapping(
    _section(
        {
            "strategy": ({"anyOf": [{"enum": list(STRATEGIES)}, _MACRO]}, "How the target is chosen."),
            "targets": (_LIST, "Ids, aliases, or models of peers."),
            "settings": (
                _section({"spillover": (_integer(1, REQUESTS_MAX), "Requests of a target before the next.")}),
                "",
            ),
            "name": (_TEXT, "Shown in /v1/models."),
            "description": (_TEXT, "Shown in /v1/models."),
            "unlisted": (_FLAG, "Not in /v1/models."),
            "metadata": (_mapping(_ANY), "Shown in /v1/models."),
        },
        required=["strategy", "targets"],
    )
)
_PROFILES = _mapping(
    _section(
        {
            "description": (_TEXT, ""),
            "pins": (_mapping(_TEXT, type="object"), "Names, and what they stand for; nothing: 404."),
        },
        required=["pins"],
    )
)
_PEERS = _mapping(
    _section(
        {
            "proxy": (_like("^https?://[^/]"), "Its address, which a request's path goes behind."),
            "apiKey": (_TEXT, "Sent to it; shown nowhere."),
            "models": (_LIST, "The models that it has."),
            "filters": (_FILTERS, "As a model's."),
            "timeouts": (_TIMEOUTS, "connect and responseHeader count."),
        },
        required=["proxy", "models"],
    )
)
_LISTEN: Schema = {"anyOf": [_NULL, _like(":[0-9]{1,5}$")]}
_ORIGINS: Schema = {"type": ["array", "null"], "items": _like(r"^(\*$|[a-z][a-z0-9+.-]*://)")}
_TOP: dict[str, tuple[Schema, str]] = {
    "models": (_mapping(_MODEL, maxProperties=CONFIG_MODELS, type="object"), "Model ids, and what they are."),
    "macros": (_MACROS, "Text for use as ${name}; a macro may use those above it."),
    "unknownKeys": (_choice("error", "warn"), "What a key is that nobody knows. Default: error."),
    "listen": (_LISTEN, "HOST:PORT of the HTTP front door. Default: 127.0.0.1:8080."),
    "insecureListen": (_FLAG, "`listen` may be wider than this machine without apiKeys."),
    "apiKeys": ({**_TEXTS, "maxItems": API_KEYS}, "One of these must come with a request."),
    "allowedHosts": (_TEXTS, "Names that a Host header may have beside loopback's."),
    "cors": (
        _section({"origins": (_ORIGINS, 'Origins such as https://chat.example.org, or "*".')}),
        "Which pages may ask and read answers. Default: none.",
    ),
    "maxBody": (_SIZE, "The largest body of a request. Default: 64MiB."),
    "upstream": (
        _section({"ignorePaths": (_TEXTS, "Regular expressions of paths that load nothing.")}),
        "Of /upstream/MODEL/….",
    ),
    "controlSocket": (_TEXT, "Path of the control socket."),
    "controlGroup": (_TEXT, "The group whose members may use the control socket. Default: the daemon's own."),
    "eventLog": (_TEXT, "Path of the event log."),
    "durability": (_choice("process", "machine"), "What crash the log survives. Default: the daemon's."),
    "retention": (
        _section(
            {
                "size": (_SIZE, "Of the event log; what is older is archived and pruned. 0: no limit."),
                "age": (_DURATION, "What is older is archived and pruned. 0: no limit."),
                "archive": (_SIZE, "Of the archive; the oldest goes first. 0: nothing is archived."),
            }
        ),
        "How much of the event log is kept. Default: 1 GiB, and 1 GiB of archive.",
    ),
    "maxQueue": (_integer(1, REQUESTS_MAX), f"Requests that may wait at once. Default: {QUEUE_MAX}."),
    "maxLoadedModels": (_integer(0, CONFIG_MODELS), "Runners loaded at once; 0: automatic."),
    "policy": (_choice(*POLICIES), "Whose turn it is where models do not fit together. Default: balanced."),
    "swapPatience": (
        _integer(0, SWAP_PATIENCE_MAX),
        f"How many times the cost of a swap a busy model keeps its place. Default: {SWAP_PATIENCE}.",
    ),
    "maxWait": (_DURATION, "Whoever has waited for so long has his turn; 0: off."),
    "ageStep": (_DURATION, "A waiter's priority rises by one for each of these. Default: 60 s."),
    "prefetch": (_FLAG, "Read a model's files ahead while the runners that must go for it drain."),
    "devices": (
        _mapping(
            _section({"budget": (_SIZE, "What runners may use of it.")}),
            propertyNames=_DEVICE,
        ),
        "host, gpu0, gpu1 …. Default: what the machine reports.",
    ),
    "memoryHeadroom": (_SIZE, "What is left free on each device. Default: 512MiB."),
    "startPort": (_integer(1, 65535), "${PORT} is leased from here on. Default: 5800."),
    "globalTTL": (_DURATION, "ttl of the models that have none; 0: never unloaded for being idle."),
    "hooks": (
        _section(
            {
                "on_startup": (
                    _section(
                        {
                            "preload": (_TEXTS, "Ids or aliases of models that are loaded at start."),
                            "profile": (_TEXT, "The profile that a start and a reload use."),
                        }
                    ),
                    "",
                )
            }
        ),
        "What is done at start.",
    ),
    "includeAliasesInList": (_FLAG, "Aliases appear in /v1/models."),
    "groups": (_GROUPS, "Which models may be loaded together."),
    "matrix": (_MATRIX, "Which models may be loaded together, as sets."),
    "routing": (_ROUTING, "groups, matrix and priorities, as newer files of llama-swap have them."),
    "selectors": (_SELECTORS, "Names whose target is chosen for each request."),
    "profiles": (_PROFILES, "Names that stand for others while one is in use."),
    "peers": (_PEERS, "Other servers, and the models that they have."),
    **_LIMITS,
    **{
        key: (_ANY, _IGNORED)
        for key in (
            "logLevel", "logTimeFormat", "logToStdout", "logRequests", "metricsMaxInMemory", "captureBuffer",
            "store", "ui", "performance",
        )
    },
}  # fmt: skip


def schema() -> Schema:
    """The schema of a whole file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "runnerd's configuration",
        **_section(_TOP, patternProperties={"^x-": {}}, required=["models"]),
        "type": "object",
    }
