"""Random valid merge configurations: the parents and coefficients read here against mergekit's own resolution.

    python benchmarks/mergekit_configs.py --mergekit PYTHON [--configs 1000] [--seed 0]

PYTHON is the interpreter of an environment with mergekit 0.1.5, which is never imported here: configurations go to it
as YAML, and what its planner makes of them comes back as JSON. Not part of the tests: mergekit is no dependency.

Compared are, for every module and slice, the models that are merged and the base of delta methods, and for linear and
task arithmetic the coefficients: mergekit's are resolved for tensors of every kind at five depths, and one number is
expected here exactly where they are all the same. Exits with 1 when two answers differ.
"""

import argparse
import json
import math
import random
import subprocess
import sys

import yaml

from kinbase.checkpoint.merge_config import BASE_IS_PARENT, METHODS, MIXES_WEIGHTS, uses, weights

NEEDS_BASE = ("slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
              "breadcrumbs_ties", "sce", "ram", "ramplus_tl", "model_stock", "nearswap", "arcee_fusion")  # fmt: skip
TWO = ("slerp", "nearswap", "arcee_fusion")
NAMES = (
    "org/a",
    "org/b",
    "org/c",
    "org/d",
    "lab/e",
    "./local",
    "org/a@v1",
    "org/b@v2",
    "org/c+lab/lora",
    "org/d+lab/l@r1",
)
KINDS = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
FILTERS = ("self_attn", "mlp", "layernorm")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LAYERS = 8

# What runs in mergekit's environment: its own parsing, normalisation, validation and parameter resolution.
THEIRS = """
import json, sys, types
from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.config import ConfigReader, MergeConfiguration
from mergekit.parameter_resolver import resolve_parameters
from mergekit.plan import MergePlanner
import yaml
kinds, depths, layers = json.loads(sys.argv[1])
ModelReference.config = lambda self, **kw: None
arch = types.SimpleNamespace(num_layers=lambda config: layers)
info = types.SimpleNamespace(modules={"default": types.SimpleNamespace(architecture=arch)})
options = types.SimpleNamespace(trust_remote_code=False)
def told(ref):
    return str(ref)
for line in sys.stdin:
    try:
        config = MergeConfiguration.model_validate(yaml.safe_load(json.loads(line)))
        planner = MergePlanner(config, info, options, None)
        planner.normalize_config()
        spec = merge_methods.get(config.merge_method).spec
        groups = []
        for module in config.modules.values():
            for part in module.slices:
                reader = ConfigReader(config=config, t=0, module=module, slice_out=part)
                inputs = {source.model: None for source in part.sources}
                rows = []
                for kind in kinds:
                    for t in depths:
                        at = reader.with_t(t)
                        shared, own = resolve_parameters(spec, tensor_name=kind, inputs={m: kind for m in inputs},
                            sources=at.parameter_sources, base_model=at.base_model, t=t)
                        rows.append([{k: v for k, v in shared.items() if isinstance(v, (bool, int, float))},
                            {told(m): p.get("weight") for m, p in own.items()}])
                base = told(reader.base_model) if reader.base_model else None
                groups.append({"inputs": [told(m) for m in inputs], "base": base, "rows": rows})
        print(json.dumps({"groups": groups}), flush=True)
    except Exception as error:
        print(json.dumps({"refused": type(error).__name__ + ": " + str(error)[:150]}), flush=True)
"""


def setting(draw: random.Random) -> object:
    """A number, a gradient, or filters over parts of the model."""
    one = lambda: draw.choice([0.5, 0.25, 1.0, 0.5, 2, round(draw.random(), 2), "0.5", "1e-1"])  # noqa: E731
    kind = draw.random()
    if kind < 0.6:
        return one()
    if kind < 0.75:
        return [one() for _ in range(draw.randint(1, 4))]
    filters = draw.sample(FILTERS, draw.randint(1, 3))
    listed: list[object] = [
        {"filter": f, "value": one() if draw.random() < 0.8 else [one(), one()]} for f in filters
    ]
    if draw.random() < 0.6:
        listed.append({"value": one()} if draw.random() < 0.7 else {"filter": "*", "value": one()})
    return listed


def parameters(draw: random.Random, method: str, shared: bool, chance: float = 1.0) -> dict[str, object]:
    """Parameters of one level of a configuration, each with a chance of being there."""
    found: dict[str, object] = {}
    if draw.random() < chance:
        found["weight"] = setting(draw)
    if shared and draw.random() < 0.5:
        found["normalize"] = draw.choice([True, False, "true", 0])
    if shared and method == "task_arithmetic" and draw.random() < 0.4:
        found["lambda"] = draw.choice([0.5, 1.0, "0.8", [0.2, 0.2], [0.1, 0.9]])
    if method in ("slerp", "nearswap") and (shared or draw.random() < 0.2):
        found["t"] = setting(draw)
    return found


def config(draw: random.Random) -> dict[str, object]:
    """One configuration that mergekit may accept, of any method and shape."""
    method = draw.choice(METHODS)
    names = draw.sample(NAMES, draw.randint(2, 5))
    base = draw.choice(names) if method in NEEDS_BASE or draw.random() < 0.5 else None
    document: dict[str, object] = {"merge_method": method, "dtype": "bfloat16"}
    shape = draw.choice(("models", "models", "slices", "modules"))
    if method in TWO:
        names = [base, next(n for n in NAMES if n != base)] if base else names[:2]
    elif method == "nuslerp":
        names = [*[n for n in names if n != base], *[n for n in NAMES if n not in names]][:2] + (
            [base] if base else []
        )
    elif method == "passthrough":
        names = names[:1]
        base = None if shape != "slices" else base
    draw.shuffle(names)
    if base:
        document["base_model"] = base
    chance = draw.choice([0.0, 0.6, 1.0])
    inputs = [
        {"model": n, **({"parameters": p} if (p := parameters(draw, method, False, chance)) else {})}
        for n in names
    ]
    if base and shape != "slices" and draw.random() < 0.5 and method != "nuslerp":
        inputs = [i for i in inputs if i["model"] != base]  # added by itself, whatever the method
    outer = parameters(draw, method, True, 0.9 if chance < 1 else 0.2)
    middle = parameters(draw, method, True, 0.3) if draw.random() < 0.3 else {}
    if shape == "models":
        document["models"] = inputs
    elif shape == "slices":
        cut = draw.choice((1, 2))
        slices = []
        for i in range(cut):
            span = [i * LAYERS // cut, (i + 1) * LAYERS // cut]
            own = parameters(draw, method, True, 0.3) if draw.random() < 0.3 else {}
            slices.append(
                {
                    "sources": [{**each, "layer_range": span} for each in inputs],
                    **({"parameters": own} if own else {}),
                }
            )
        document["slices"] = slices
    else:
        document["modules"] = {"default": {"models": inputs, **({"parameters": middle} if middle else {})}}
    if outer:
        document["parameters"] = outer
    return document


def expected(method: str, answer: dict) -> tuple[set[str], set[str], dict[str, set[float | None]]]:
    """What mergekit merges and takes deltas from, and each input's coefficients over groups, tensors and depths."""
    merged: set[str] = set()
    bases: set[str] = set()
    found: dict[str, set[float | None]] = {}
    for group in answer["groups"]:
        is_delta = method not in BASE_IS_PARENT + MIXES_WEIGHTS
        base = group["base"] if group["base"] in group["inputs"] else None
        inputs = [m for m in group["inputs"] if not (is_delta and m == base)]
        merged |= set(inputs)
        bases |= {base} if base and is_delta else set()
        for shared, own in group["rows"]:
            for model in inputs:
                weight = own.get(model, {}) if method in ("linear", "task_arithmetic") else None
                if weight is not None:
                    total = math.fsum(own[m] for m in inputs) if shared.get("normalize") else 1.0
                    weight = weight * shared.get("lambda", 1.0) / total if total else None
                found.setdefault(model, set()).add(None if weight is None else round(weight, 9))
    return merged, bases, found


def ours(document: dict[str, object]) -> tuple[set[str], set[str], dict[str, set[float | None]]]:
    """The same as Kinbase reads it."""
    method = str(document["merge_method"])
    inputs = uses(document, [])
    merged: set[str] = set()
    bases: set[str] = set()
    found: dict[str, set[float | None]] = {}
    for use, weight in zip(inputs, weights(method, inputs), strict=True):
        said = use.reference
        parts = [(said.model, said.revision), (said.lora, said.lora_revision)]
        said = use.reference
        parts = [(said.model, said.revision), (said.lora, said.lora_revision)]
        label = "+".join(f"{m}@{r}" if r else m for m, r in parts if m)
        if use.is_base(method):
            bases.add(label)
            continue
        merged.add(label)
        found.setdefault(label, set()).add(None if weight is None else round(weight, 9))
    return merged, bases, found


def main() -> int:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--mergekit", required=True, help="the interpreter of an environment with mergekit")
    asked.add_argument("--configs", type=int, default=1000, help="valid configurations to compare")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--show", type=int, default=5, help="differences that are printed")
    given = asked.parse_args()
    draw = random.Random(given.seed)
    documents = [config(draw) for _ in range(3 * given.configs)]
    lines = "".join(json.dumps(yaml.safe_dump(document, sort_keys=False)) + "\n" for document in documents)
    told = subprocess.run([given.mergekit, "-c", THEIRS, json.dumps([KINDS, DEPTHS, LAYERS])], input=lines,
                          capture_output=True, text=True, check=True)  # fmt: skip
    valid = differ = refused = 0
    for document, line in zip(documents, told.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        if "refused" in answer:
            refused += 1
            continue
        if valid == given.configs:
            break
        valid += 1
        method = str(document["merge_method"])
        theirs, mine = expected(method, answer), ours(document)
        counts = method in ("linear", "task_arithmetic")
        one = {m: next(iter(v)) if len(v) == 1 else None for m, v in theirs[2].items()}
        same = theirs[:2] == mine[:2] and (
            not counts or all(one[m] == (next(iter(v)) if len(v) == 1 else None) for m, v in mine[2].items())
        )
        if not same:
            differ += 1
            if differ <= given.show:
                print(
                    yaml.safe_dump(document, sort_keys=False),
                    "mergekit:",
                    theirs[:2],
                    one,
                    "\nkinbase: ",
                    mine,
                    "\n",
                )
    print(
        f"{valid} valid configurations over {len(METHODS)} methods, {differ} read otherwise ({refused} that mergekit refuses)"
    )
    return int(differ > 0 or valid < given.configs)


if __name__ == "__main__":
    sys.exit(main())
