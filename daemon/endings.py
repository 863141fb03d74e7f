"""What a client is told when its request ends without an answer: one row for each reason of a decision."""

from __future__ import annotations

from daemon.ports import Ended
from events.catalogue import RequestCancelled, RequestFailed, RequestRejected, RequestTimedOut
from events.limits import S
from statemachines.state import State

BUSY = "server busy, please try again.  maximum pending requests exceeded"
"""Ollama's words, which its clients look for."""

STATUS: dict[str, tuple[int, str]] = {
    "unknown_model": (404, "model '{model}' is not configured"),
    "unknown_option": (400, "model '{model}' has no launch option {detail}"),
    "queue_full": (503, BUSY),
    "concurrency_limit": (429, "too many requests for model '{model}' at once"),
    "cooling_down": (503, "model '{model}' failed and is not tried again yet: {message}"),
    "quarantined": (
        500,
        "requests for model '{model}' are refused for a while: one of them broke the daemon",
    ),
    "stopping": (503, "the server is stopping"),
    "load_failed": (502, "model '{model}' failed to load: {message}"),
    "upstream_failed": (502, "the runner of model '{model}' failed: {detail}"),
    "cut_off": (503, "the runner of model '{model}' was told to stop before its answer was complete"),
    "revoked": (503, "the lease of model '{model}' was revoked, and not let go of in time: {detail}"),
    "taken_over": (409, "the lease of model '{model}' is held by another connection, which has its token"),
    "never_fits": (507, "model '{model}' can never fit: it {detail}"),
    "no_memory": (503, "no memory for model '{model}' ({detail})"),
    "no_port": (503, "no port for model '{model}': {detail}"),
    "pinned": (503, "no room for model '{model}': {detail} would have to go; runnerctl unpin or unload it"),
    "preloaded": (503, "no room for model '{model}' beside what is preloaded: {detail} would have to go"),
    "unloaded": (503, "model '{model}' was unloaded by an operator"),
    "queue_timeout": (504, "model '{model}' was not available in time"),
    "first_byte_timeout": (504, "model '{model}' did not begin to answer in time"),
    "request_timeout": (504, "model '{model}' did not answer in time"),
    "client_gone": (499, "the client went away"),
    "operator": (503, "the request was cancelled by an operator"),
    "request_not_found": (404, "no such request"),
    "unknown_runner": (404, "no such runner"),
    "stuck": (503, "{detail} cannot be ended: a process of it sits in the kernel, with its memory"),
    "not_loaded": (200, "nothing was loaded"),
}
RETRY_S = {"stopping": 5, "no_memory": 30, "no_port": 5, "unloaded": 1, "cut_off": 1, "upstream_failed": 1}
"""Retry-After where the decision names none."""

Ending = RequestRejected | RequestFailed | RequestCancelled | RequestTimedOut


def ending(state: State, body: Ending, model: str, caller: str) -> Ended:
    """The end of a request, for its client. Only a local caller sees a runner's output."""
    tag = body.__struct_config__.tag
    retry_ns = body.retry_after_ns if isinstance(body, RequestRejected) else 0
    retry_s = -(-retry_ns // S) or RETRY_S.get(body.reason, 0)
    detail = getattr(body, "detail", "")
    local = is_local(caller)
    return describe(state, str(tag), body.reason, model, detail=detail, retry_s=retry_s, local=local)


def describe(
    state: State,
    kind: str,
    reason: str,
    model: str,
    *,
    detail: str = "",
    retry_s: int = 0,
    local: bool = True,
) -> Ended:
    """The status and sentence for a reason; `model` names what it is about."""
    status, sentence = STATUS.get(reason, (500, f"the request ended: {reason}"))
    cooling = state.cooling.get(model)
    message = cooling.message.strip() if cooling and local else "see the daemon's journal"
    if reason == "load_failed" and cooling:
        retry_s = retry_s or -(-max(0, cooling.until_t - state.t) // S)
    text = sentence.format(model=model, detail=detail or "no further word", message=message)
    position = state.queued + 1 if reason == "queue_full" else 0
    return Ended(kind, reason, text, status, retry_s, position)


def is_local(caller: str) -> bool:
    """Whether a caller is on this machine: its address is a loopback address, or it came by a Unix socket."""
    return not caller or caller.startswith(("127.", "uid ")) or caller in ("::1", "unix")
