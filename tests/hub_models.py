"""Models for a Hub on loopback, and what was imported of them."""

import json
from pathlib import Path

STORAGE = "GET /blobs/"


def card(base, relation="finetune", more=""):
    return f"---\nbase_model: {base}\nbase_model_relation: {relation}\nlicense: mit\n{more}---\n# A model\n".encode()


def files_of(folder, **more):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return files | {name.replace("__", "."): data for name, data in more.items()}


def kinship(db):
    """Each pair once, without the organisation; 12 digits, because either may be the first of the two."""
    found = db.sql("select model_a, model_b, pcc, cs, ed from kinship").rows()
    pairs = [
        (a.removeprefix("org/"), b.removeprefix("org/"), *(round(v, 12) for v in values))
        for a, b, *values in found
    ]
    return sorted(pair for pair in pairs if pair[0] < pair[1])


def asked(hub, pattern=""):
    """Requests but for the one in which the client asks for the names of agents."""
    return [seen for seen in hub.requests(pattern) if "agent-harnesses" not in seen.path]


def shards(family, name, index_says=None):
    """The files of a model in two shards and an index."""
    from safetensors.torch import load_file, save

    tensors = load_file(family[name] / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    weight_map = {tensor: file for file, held in parts.items() for tensor in held} | (index_says or {})
    files = {file: save({t: tensors[t] for t in held}) for file, held in parts.items()}
    index = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files | {
        "model.safetensors.index.json": index,
        "config.json": (family[name] / "config.json").read_bytes(),
    }


def lines(done, names):
    """The line that tells of each; everything else imported."""
    told = {}
    for name in names:
        (told[name],) = [line for line in done.stderr.splitlines() if line.startswith(f"hf:{name} failed: ")]
    return told
