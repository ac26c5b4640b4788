"""A genuine file for every parser, as small as it can be."""

import json
import struct
import zipfile
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


def make(folder: Path) -> list[Path]:
    """The files, each in a folder of its own where its name must be the usual one; the Parquet file last."""
    import polars
    import torch

    files: list[Path] = []

    def put(name: str, data: str | bytes) -> None:
        path = folder / str(len(files)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        files.append(path)

    put("README.md", CARD)
    put("mergekit_config.yml", CARD.partition("```yaml\n")[2].partition("```")[0])
    put("results_2024-06-10T00-00-00.json", json.dumps(RESULTS))
    put(
        ".eval_results/one.yaml", "- dataset: {id: gsm8k, task_id: main}\n  value: 71.2\n  date: 2024-01-02\n"
    )
    for name, text in TABLES.items():
        put(f"{name}.csv", text)
    put("scores.jsonl", '{"model": "a", "benchmark": "b", "metric": "acc", "value": 0.5}\n')
    put("scores.json", '[{"model": "a", "benchmark": "b", "metric": "acc", "value": 0.5}]')
    put("model.gguf", _gguf())
    path = folder / "weights"
    path.mkdir()
    polars.DataFrame(
        {"model": ["a", "b"], "benchmark": ["x", "y"], "metric": ["acc", "acc"], "value": [0.5, 1.0]}
    ).write_parquet(path / "scores.parquet")
    safetensors.torch.save_file(
        {"w": torch.ones(2, 3), "n": torch.zeros(4, dtype=torch.bfloat16)}, path / "model.safetensors"
    )
    torch.save({"w": torch.ones(2, 3), "b": torch.zeros(4)}, path / "pytorch_model.bin")
    return [
        *files,
        path / "model.safetensors",
        path / "pytorch_model.bin",
        _stored(path),
        path / "scores.parquet",
    ]


def _stored(folder: Path) -> Path:
    """The pickle of a torch file with bytes that a mutation does not have to search for: nothing but the pickle."""
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        pickled = {info.filename: archive.read(info) for info in archive.infolist()}
    target = folder / "small.bin"
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in pickled.items():
            if name.endswith((".pkl", "byteorder", "version")) or "/data/" in name:
                archive.writestr(name, data)
    return target


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
