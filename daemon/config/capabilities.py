"""`capabilities` of a model: what it takes and gives, as lists of models tell it to clients."""

from __future__ import annotations

import msgspec

from daemon.config.errors import Problems, did_you_mean, shown
from daemon.config.fields import Section
from daemon.config.values import Json
from events.limits import CONFIG_INTEGER_MAX

MODALITIES = ("text", "audio", "image", "video")


class Capabilities(msgspec.Struct, frozen=True):
    """What a model can do, as far as the file says. `context`: tokens; 0: it does not say."""

    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    tools: bool = False
    reranker: bool = False
    context: int = 0

    def row(self) -> dict[str, Json]:
        """The members of a model's row in /v1/models that tell of it, as llama-swap names them."""
        row: dict[str, Json] = {}
        if self.input or self.output:
            row["architecture"] = self._architecture()
        able = self._able()
        if able or self.input or self.output:
            row["capabilities"] = able
        if self.tools:
            row["supported_parameters"] = ["tools", "tool_choice"]
        if self.context:
            row["context_length"] = self.context
        return row

    def _architecture(self) -> Json:
        found: dict[str, Json] = {}
        if self.input:
            found["input_modalities"] = list(self.input)
        if self.output:
            found["output_modalities"] = list(self.output)
        if self.input and self.output:
            found["modality"] = f"{'+'.join(self.input)}->{'+'.join(self.output)}"
        return found

    def _able(self) -> dict[str, Json]:
        takes, gives = self.input, self.output
        able = {
            "vision": "image" in takes,
            "audio_transcriptions": "audio" in takes and "text" in gives,
            "audio_speech": "text" in takes and "audio" in gives,
            "image_generation": "text" in takes and "image" in gives,
            "image_to_image": "image" in takes and "image" in gives,
            "function_calling": self.tools,
            "reranker": self.reranker,
        }
        return {name: True for name, is_able in able.items() if is_able}


def read_capabilities(section: Section, problems: Problems) -> Capabilities:
    """`capabilities` of a section."""
    found = section.below("capabilities")
    if found is None:
        return Capabilities()
    capabilities = Capabilities(
        input=_modalities(found, "in", problems),
        output=_modalities(found, "out", problems),
        tools=found.flag("tools"),
        reranker=found.flag("reranker"),
        context=found.integer("context", 0, 0, CONFIG_INTEGER_MAX),
    )
    found.finish()
    return capabilities


def _modalities(section: Section, key: str, problems: Problems) -> tuple[str, ...]:
    given: dict[str, None] = {}
    for item, path in section.texts(key):
        if item.text not in MODALITIES:
            hint = did_you_mean(item.text, MODALITIES)
            text = f'expected "text", "audio", "image" or "video", found {shown(item.text)}{hint}'
            problems.add(item.line, path, text)
        given[item.text] = None
    return tuple(given)
