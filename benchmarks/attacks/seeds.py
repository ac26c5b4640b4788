"""A genuine file for every parser, as small as it can be."""

import base64
import io
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch

CARD = """---
license: mit
base_model: [org/a, org/b]
tags: [merge, mergekit]
model-index:
- name: m
  results:
  - task: {type: text-generation}
    dataset: {name: GSM8K (5-shot), type: gsm8k, args: {num_few_shot: 5}}
    metrics: [{type: acc, value: 71.2, name: accuracy}]
---
# m

```yaml
merge_method: slerp
base_model: org/a
models: [{model: org/a}, {model: org/b, parameters: {weight: 0.5}}]
parameters: {t: [0, 0.5, 1]}
dtype: bfloat16
```
"""
RESULTS = {
    "results": {"gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.5, "exact_match_stderr,strict-match": 0.01}},
    "configs": {"gsm8k": {"task": "gsm8k", "test_split": "test", "num_fewshot": 5}}, "n-shot": {"gsm8k": 5},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 1319}}, "date": 1718000000.0, "model_name": "org/m",
}  # fmt: skip
TABLES = {
    "scores": "model,benchmark,metric,value,evaluated_at\na,b,acc,0.5,2024-01-02\nc,b,acc,N/A,\n",
    "lineage": 'parent,child,relation,method,weight,detail\na,b,merge,slerp,0.5,"{""t"": 0.5}"\n',
    "kinship": "model_a,model_b,base,pcc,cs,ed\nx,y,b,0.9,,4.5\n",
    "aliases": "alias,model,kind\nold,new,redirect\n",
    "models": "name,base,license,created_at\nm,b,mit,2024-01-02\n",
}


RUN = """
strategy: kinship
models: [a, b]
merge: {method: linear, parameters: {weight: 0.5}}
evaluate: {by: command, command: [score, "{model}"], timeout: 5}
stop: {generations: 2, kinship: 0.9}
"""
OTHERS = {
    "MLmodel": "run_id: 1a\nmetadata: {source_model_name: org/a, task: text-generation}\nflavors: {transformers: {}}\n",
    "Modelfile": "FROM org/a\nADAPTER ./lora\nPARAMETER temperature 0.5\n",
    "axolotl.yaml": "base_model: org/a\nadapter: lora\ndatasets: [{path: d, type: alpaca}]\nsequence_len: 2048\n",
    "trainer_state.json": json.dumps(
        {"global_step": 10, "log_history": [{"loss": 1.5, "step": 5}, {"eval_loss": 1.25, "step": 10}]}
    ),
    "evals.json": json.dumps({"model": "m", "evals": [{"benchmark": "b", "metric": "acc", "value": 0.5}]}),
    "results_old.json": json.dumps(
        {"config_general": {"model_name": "org/m"}, "results": {"harness|arc:challenge|25": {"acc_norm": 0.5}}}
    ),
    "summary.csv": "dataset,version,metric,mode,m\nmmlu,1a,accuracy,gen,50.5\n",
    "board.csv": "fullname,Average,IFEval,IFEval Raw,Base Model\norg/m,20,30,0.3,org/a (Merge)\n",
    "config.yaml": "_wandb: {value: {}}\nmodel_name_or_path: {value: org/a}\nlearning_rate: {value: 0.1}\n",
    "model.sig.sigstore": json.dumps(
        {"dsseEnvelope": {"payload": base64.b64encode(json.dumps(
            {"subject": [{"name": "m", "digest": {"sha256": "ab" * 32}}], "predicateType": "x"}).encode()).decode()}}
    ),
}  # fmt: skip
"""Files of other tools, each with its own reader."""
ADAPTER = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/a", "target_modules": ["q"],
    "rank_pattern": {"q": 2}, "alpha_pattern": {}, "use_rslora": False, "fan_in_fan_out": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Seed:
    """A genuine file, what is opened to read it (itself, or the folder that it is part of), and its reader."""

    path: Path
    source: Path
    reader: str = "import"
    """`import`, `merge` (a merge configuration of the user's) or `evolve` (a run's)."""
    inner: bytes | None = None
    """What is mutated, where that is a part of the file."""
    wrapped: Callable[[bytes], bytes] = bytes
    """The file of what was mutated."""

    @property
    def data(self) -> bytes:
        """What is mutated."""
        return self.path.read_bytes() if self.inner is None else self.inner


def make(folder: Path) -> list[Seed]:
    """The files, each in a folder of its own where its name must be the usual one; the Parquet file last."""
    import polars
    import torch

    seeds: list[Seed] = []

    def put(name: str, data: str | bytes, of: str | None = None, reader: str = "import") -> None:
        path = folder / str(len(seeds)) / name
        if of:
            path = folder / of / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        seeds.append(Seed(path, path.parent if of else path, reader))

    def put_wrapped(name: str, inner: bytes, wrapped: Callable[[bytes], bytes]) -> None:
        put(name, wrapped(inner))
        seeds[-1] = replace(seeds[-1], inner=inner, wrapped=wrapped)

    put("README.md", CARD)
    merge = CARD.partition("```yaml\n")[2].partition("```")[0]
    put("mergekit_config.yml", merge)
    put("merge.yml", merge, reader="merge")
    put("run.yaml", RUN, reader="evolve")
    put("results_2024-06-10T00-00-00.json", json.dumps(RESULTS))
    put(
        ".eval_results/one.yaml", "- dataset: {id: gsm8k, task_id: main}\n  value: 71.2\n  date: 2024-01-02\n"
    )
    for name, text in TABLES.items():
        put(f"{name}.csv", text)
    put("scores.jsonl", '{"model": "a", "benchmark": "b", "metric": "acc", "value": 0.5}\n')
    put("scores.json", '[{"model": "a", "benchmark": "b", "metric": "acc", "value": 0.5}]')
    for name, text in OTHERS.items():
        put(name, text)
    put("model.gguf", _gguf())
    put("adapter_config.json", json.dumps(ADAPTER), of="adapter")
    factors = {f"base_model.model.q.lora_{k}.weight": torch.ones(2, 3) for k in "AB"}
    factors["base_model.model.q.lora_B.weight"] = torch.ones(4, 2)
    put("adapter_model.safetensors", safetensors.torch.save(factors), of="adapter")
    names = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    put(
        "model.safetensors.index.json",
        json.dumps({"metadata": {"total_size": 48}, "weight_map": dict(zip("ab", names, strict=True))}),
        of="shards",
    )
    for key, name in zip("ab", names, strict=True):
        (folder / "shards" / name).write_bytes(safetensors.torch.save({key: torch.ones(2, 3)}))
    put("config.json", '{"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}', of="shards")
    path = folder / "weights"
    path.mkdir()
    weights = safetensors.torch.save({"w": torch.ones(2, 3), "n": torch.zeros(4, dtype=torch.bfloat16)})
    put("model.safetensors", weights)
    put_wrapped("header.safetensors", *_headed(weights))
    torch.save({"w": torch.ones(2, 3), "b": torch.zeros(4)}, path / "pytorch_model.bin")
    put("pytorch_model.bin", (path / "pytorch_model.bin").read_bytes())
    put_wrapped("pickled.bin", *_archived(path))
    polars.DataFrame(
        {"model": ["a", "b"], "benchmark": ["x", "y"], "metric": ["acc", "acc"], "value": [0.5, 1.0]}
    ).write_parquet(path / "scores.parquet")
    put("scores.parquet", (path / "scores.parquet").read_bytes())
    return seeds


def _archived(folder: Path) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The pickle of a torch file, and what makes a torch file of a pickle: a mutation is then of the pickle alone."""
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    ((name, pickled),) = [(name, data) for name, data in records.items() if name.endswith("/data.pkl")]
    others = {n: d for n, d in records.items() if n.endswith(("/byteorder", "/version")) or "/data/" in n}

    def wrapped(data: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for record, held in {name: data, **others}.items():
                archive.writestr(record, held)
        return out.getvalue()

    return pickled, wrapped


def _headed(whole: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """The header of a safetensors file, and what makes a file of a header, whose length is told rightly."""
    (length,) = struct.unpack("<Q", whole[:8])
    return whole[8 : 8 + length], lambda data: struct.pack("<Q", len(data)) + data + whole[8 + length :]


def _gguf() -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        ("general.architecture", "llama"),
        ("general.license", "mit"),
        ("general.base_model.0.repo_url", "https://huggingface.co/org/base"),
    ]
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in pairs)
    body += text("general.base_model.count") + struct.pack("<II", 4, 1)
    body += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + text("a") + text("b") + text("c")
    tensor = text("w") + struct.pack("<IQQIQ", 2, 4, 4, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs) + 2) + body + tensor
