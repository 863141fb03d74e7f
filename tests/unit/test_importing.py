"""`runnerd import-ollama` on directories as Ollama makes them, and on damaged ones."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from daemon.cli import runnerd
from daemon.config.config import Config
from daemon.config.file import load
from daemon.importing import HOST, import_models
from daemon.ports import Launch
from tests.unit.test_gguf import File, llama

TYPE = "application/vnd.ollama.image."


class Ollama:
    """A directory of models."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "blobs").mkdir(parents=True)

    def blob(self, data: bytes | File) -> dict[str, Any]:
        """A blob's digest and size."""
        if isinstance(data, File):
            data = data.tensor("w", (256, 8), 0, 8192).write(self.place / "made").read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        (self.place / "blobs" / f"sha256-{digest}").write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def model(self, name: str = "llama3/latest", **layers: Any) -> Path:
        """A model of these layers; weights, if nothing else is said."""
        made: list[dict[str, Any]] = []
        for kind, data in ({"model": llama()} | layers).items():
            for each in data if isinstance(data, list) else [data]:
                if each is not None:
                    text = each if isinstance(each, bytes | File) else json.dumps(each).encode()
                    made.append({"mediaType": TYPE + kind.rstrip("0123456789"), **self.blob(text)})
        config = {"mediaType": "application/vnd.docker.container.image.v1+json"}
        config |= self.blob(b'{"model_format":"gguf"}')
        return self.manifest(name, {"schemaVersion": 2, "config": config, "layers": made})

    def manifest(self, name: str, content: Any) -> Path:
        """A manifest with any content; a name of two parts is one of Ollama's own library."""
        path = self.place / "manifests" / (f"{HOST}/library/{name}" if name.count("/") == 1 else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    def read(self, directory: Path) -> tuple[Config, tuple[str, ...]]:
        """What is imported, as a configuration that was loaded."""
        found = import_models(self.place)
        path = directory / "config.yaml"
        path.write_text(found.text)
        return load(path, {}), found.refused


@pytest.fixture
def ollama(tmp_path: Path) -> Ollama:
    return Ollama(tmp_path / "models")


def argv(config: Config, id: str) -> list[str]:
    return list(config.command(id, Launch("r1", id, "", {}, 5800, False), "").argv)


def test_a_model_as_it_is_pulled(ollama: Ollama, tmp_path: Path) -> None:
    parameters = {
        "num_ctx": 8192, "temperature": 0.6, "top_k": 20, "stop": ["<|im_end|>", "a 'b'\n\\"], "seed": 7,
        "num_gpu": 20, "mirostat": 2, "use_mmap": True, "num_predict": -1,
    }  # fmt: skip
    ollama.model(
        params=parameters,
        projector=b"GGUF projector",
        adapter=[b"GGUF one", b"GGUF two"],
        template=b"{{ .Prompt }}",
        system=b"Be kind.",
        license=b"MIT",
    )
    config, refused = ollama.read(tmp_path)
    assert refused == ()
    assert config.aliases == {"llama3": "llama3:latest"}
    model = config.models["llama3:latest"]
    assert model.options == {"num_ctx": 8192, "num_gpu": 20}
    assert (model.slots, model.keep_alive_ns) == (1, 300_000_000_000)
    words = argv(config, "llama3:latest")
    files = [word for word in words if "/blobs/sha256-" in word]
    assert [words[words.index(file) - 1] for file in files] == ["--model", "--mmproj", "--lora"]
    paths = [Path(path) for file in files for path in file.split(",")]
    assert [path.is_file() and path.is_relative_to(ollama.place) for path in paths] == [True] * 4
    rest = [word for word in words if word not in files]
    assert rest == [
        "llama-server", "--port", "5800", "--model", "--ctx-size", "8192", "--parallel", "1", "--mmproj",
        "--lora", "--temp", "0.6", "--top-k", "20", "--reverse-prompt", "<|im_end|>", "--reverse-prompt",
        "a 'b'\\n\\\\", "--seed", "7", "-ngl", "20", "--predict", "-1",
    ]  # fmt: skip
    text = import_models(ollama.place).text
    assert "# Ollama's parameter 'mirostat' is not taken over." in text
    assert "# Ollama's template is not taken over: llama-server uses the one in the weights." in text
    assert "# Ollama's system prompt is not taken over." in text


def test_names_are_as_ollama_shows_them(ollama: Ollama, tmp_path: Path) -> None:
    ollama.model("llama3.2/3b", params={"seed": 1})
    ollama.model("llama3.2/latest", params={"seed": 1})  # the same manifest
    ollama.model(f"{HOST}/ana/tuned/v1", params={"seed": 2})
    ollama.model("hf.co/bartowski/Qwen-GGUF/Q4_K_M", params={"seed": 3})
    ollama.model("hf.co/library/x/latest", params={"seed": 4})
    config, refused = ollama.read(tmp_path)
    assert refused == ()
    assert sorted(config.models) == [
        "ana/tuned:v1", "hf.co/bartowski/Qwen-GGUF:Q4_K_M", "hf.co/library/x:latest", "llama3.2:3b",
    ]  # fmt: skip
    assert config.models["llama3.2:3b"].aliases == ("llama3.2:latest", "llama3.2")
    assert config.resolve("hf.co/library/x") == "hf.co/library/x:latest"


def test_what_only_embeds_is_started_so(ollama: Ollama, tmp_path: Path) -> None:
    bert = File().key("general.architecture", "bert").key("bert.block_count", 2)
    bert.key("bert.context_length", 512).key("bert.embedding_length", 64).key("bert.attention.head_count", 4)
    ollama.model("embedder/latest", model=bert)
    ollama.model("batched/latest", model=bert, params={"num_batch": 4096})
    config, _ = ollama.read(tmp_path)
    assert argv(config, "embedder:latest")[-3:] == ["--embeddings", "--ubatch-size", "2048"]
    assert argv(config, "batched:latest")[-5:-3] == ["--batch-size", "4096"]
    assert argv(config, "batched:latest")[-2:] == ["--ubatch-size", "4096"]


def test_no_byte_is_copied_and_nothing_is_changed(ollama: Ollama) -> None:
    ollama.model(params={"num_ctx": 1024})
    before = {path: path.stat() for path in ollama.place.rglob("*")}
    import_models(ollama.place)
    after = {path: path.stat() for path in ollama.place.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items()
    }


def test_damaged_manifests_are_told_and_the_others_taken(ollama: Ollama, tmp_path: Path) -> None:
    ollama.model("good/latest")
    ollama.manifest("nojson/1", b"{")
    ollama.manifest("binary/1", b"\xff\0\xff")
    ollama.manifest("list/1", [1])
    ollama.manifest("nothing/1", {"layers": []})
    ollama.manifest("long/1", b" " * (1 << 20) + b"{}")
    weights = {"mediaType": TYPE + "model"}
    ollama.manifest("path/1", {"layers": [{**weights, "digest": "sha256:../../../etc/passwd", "size": 1}]})
    ollama.manifest("gone/1", {"layers": [{**weights, "digest": f"sha256:{'0' * 64}", "size": 1}]})
    whole = ollama.blob(b"GGUF partial")
    ollama.manifest("partial/1", {"layers": [{**weights, **whole, "size": 99}]})
    ollama.model("twice/1", model=[llama(), File().key("general.architecture", "x")])
    ollama.model("tensors/1", model=None, tensor=b"x")
    ollama.model("garbage/1", model=b"no weights at all")
    ollama.model("parameters/1", params=b"[1]")
    remote = ollama.blob(b'{"remote_host":"https://ollama.com","remote_model":"x"}')
    ollama.manifest("cloud/1", {"config": {"mediaType": "x", **remote}, "layers": []})
    ollama.manifest("bad name/1", {"layers": []})
    ollama.manifest("good/.DS_Store", b"x")
    (ollama.place / "manifests" / HOST / "library" / "good" / "folder").mkdir()
    config, refused = ollama.read(tmp_path)
    assert list(config.models) == ["good:latest"]
    told = {each.partition(": ")[0]: each.partition(": ")[2] for each in refused}
    assert told.pop("registry.ollama.ai/library/bad name/1") == "that is no model's name"
    for name, words in {
        "nojson:1": "its manifest is damaged: Input data was truncated",
        "binary:1": "its manifest is damaged",
        "list:1": "its manifest is damaged: Expected `object`, got `array`",
        "nothing:1": "expected one file of weights, found none",
        "long:1": "its manifest is longer than 1048576 bytes",
        "path:1": "its manifest has no digest of its weights",
        "gone:1": "its weights cannot be read: No such file or directory",
        "partial:1": "its weights should have 99 bytes and has 12",
        "twice:1": "expected one file of weights, found 2",
        "tensors:1": "its weights are safetensors, which llama-server does not read",
        "garbage:1": "its weights are no GGUF file that can be read",
        "parameters:1": "the file of its parameters is damaged",
        "cloud:1": "it is served by https://ollama.com, and not on this machine",
    }.items():
        assert told.pop(name).startswith(words), name
    assert told == {}


def test_hostile_parameters_stay_words(ollama: Ollama, tmp_path: Path) -> None:
    """A manifest may come from anywhere: it must not get a flag, a macro or a line of YAML of its own in."""
    stop = ["--host 0.0.0.0", "x\n      --api-key y", "${env.HOME}", "'; rm -rf /", "\x1b[31m", ""]
    parameters = {
        "stop": stop,
        "top_k\n    cmd: evil": 1,
        "temperature": "0 --host x",
        "num_ctx": "8",
        "seed": True,
    }
    ollama.model(params=parameters)
    config, refused = ollama.read(tmp_path)
    assert (refused, list(config.models)) == ((), ["llama3:latest"])
    words = argv(config, "llama3:latest")
    assert words[9:] == [
        "--reverse-prompt", "--host 0.0.0.0", "--reverse-prompt", "x\\n      --api-key y", "--reverse-prompt",
        "'; rm -rf /", "--reverse-prompt", "?[31m",
    ]  # fmt: skip
    note = "# Ollama's stop word '${env.HOME}' is not taken over: it looks like a macro."
    assert note in import_models(ollama.place).text


def test_the_command(
    ollama: Ollama, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama.model()
    ollama.manifest("bad/1", b"{")
    monkeypatch.setenv("OLLAMA_CONTEXT_LENGTH", "16384")
    output = tmp_path / "new.yaml"
    command = [
        "import-ollama",
        str(ollama.place),
        "--output",
        str(output),
        "--server",
        "/opt/my llama-server",
    ]
    assert runnerd.main(command) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "runnerd: left out: bad:1: its manifest is damaged" in shown.err
    assert f"runnerd: 1 model; runnerd check --config {output} says what the file means" in shown.err
    config = load(output, {})
    assert argv(config, "llama3:latest")[0] == "/opt/my llama-server"
    assert config.models["llama3:latest"].options == {"num_ctx": 16384}
    assert runnerd.main(command) == 1
    assert "exists, and is left as it is" in capsys.readouterr().err
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama.place))
    assert runnerd.main(["import-ollama"]) == 0
    assert "llama3:latest" in capsys.readouterr().out
    os.rename(ollama.place, tmp_path / "ollama-models")
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runnerd.main(["import-ollama"]) == 2
    assert "has no manifests/" in capsys.readouterr().err
    (tmp_path / ".ollama").mkdir()
    os.rename(tmp_path / "ollama-models", tmp_path / ".ollama/models")
    assert runnerd.main(["import-ollama"]) == 0
    assert runnerd.main(["import-ollama", str(tmp_path / ".ollama")]) == 0
    (tmp_path / "empty/manifests").mkdir(parents=True)
    assert runnerd.main(["import-ollama", str(tmp_path / "empty")]) == 1
