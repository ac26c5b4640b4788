"""Architectures relabelled at random: `python benchmarks/relabelling.py` where transformers is installed beside Kinbase.

Each architecture of transformers is made small with random weights, its units are relabelled at random in every way that
`kinbase.matching` holds to be allowed, and the result is opened in transformers again: the largest change of a logit, relative
to the largest logit, says whether it computes the same. Then the relabelling is searched for: `back` is the largest
difference of a weight from the first model's, relative to its tensor's largest, with permutations and signs alone, and
with scales too (of which those below 1% are left). transformers is no dependency: without it nothing is done.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kinbase.checkpoint import Tensor
from kinbase.checkpoint.open import read
from kinbase.errors import KinbaseError
from kinbase.matching.architecture import Architecture, architecture, config_of
from kinbase.matching.match import match
from kinbase.matching.relabelled import relabelled
from kinbase.matching.symmetry import Symmetry, Units

SIZES = {
    "vocab_size": 120, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 96,
}  # fmt: skip
OLD = {"vocab_size": 120, "n_embd": 48, "n_layer": 2, "n_head": 6}
GROUPED = {**SIZES, "num_key_value_heads": 2}
MODELS = {
    "Llama": {**GROUPED, "attention_bias": True, "mlp_bias": True}, "Mistral": GROUPED, "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8}, "Phi3": {**GROUPED, "pad_token_id": 0}, "Gemma": {**GROUPED, "head_dim": 8},
    "Gemma2": {**GROUPED, "head_dim": 8}, "Olmo": GROUPED, "Olmo2": GROUPED, "Granite": GROUPED, "StableLm": GROUPED,
    "Phi": SIZES, "Starcoder2": GROUPED, "Cohere": GROUPED,
    "SmolLM3": {**GROUPED, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, "GPTNeoX": SIZES, "GPTBigCode": OLD,
    "GPTJ": {**OLD, "rotary_dim": 8}, "GPT2": OLD,
    "OPT": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 48}, "Bert": SIZES, "Roberta": {**SIZES, "pad_token_id": 1},
    "DistilBert": {"vocab_size": 120, "dim": 48, "n_layers": 2, "n_heads": 6, "hidden_dim": 96},
    "Mixtral": {**GROUPED, "num_local_experts": 2}, "Bloom": {"vocab_size": 120, "hidden_size": 48, "n_layer": 2, "n_head": 6},
}  # fmt: skip
"""By the beginning of their classes' names; the last two are refused."""


def shuffle(units: Units, rng: np.random.Generator) -> None:
    """Permute each row of a group of units."""
    rows = units.index.reshape(-1, units.index.shape[-1])
    units.index = np.stack([rng.permutation(row) for row in rows]).reshape(units.index.shape)


def at_random(model: Architecture, rng: np.random.Generator, *, has_scales: bool) -> Symmetry:
    """A relabelling of all that may be relabelled."""
    found = Symmetry.identity(model)
    shuffle(found.residual, rng)
    if model.has_signs:
        found.residual.factor = rng.choice([-1.0, 1.0], model.hidden)
    for layer in found.layers:
        for units in (
            layer.units,
            layer.groups,
            layer.queries,
            layer.values,
            *([] if model.is_rotary else [layer.keys]),
        ):
            shuffle(units, rng)
        if has_scales:
            if model.is_gated:
                layer.units.factor = np.exp(rng.normal(size=model.units)) * rng.choice([-1, 1], model.units)
            layer.values.factor = np.exp(rng.normal(size=layer.values.factor.shape))
            if not model.has_head_norms:
                layer.keys.factor = np.repeat(np.exp(rng.normal(size=(model.groups, 1))), model.head, 1)
            for role in {"first", "second"} & set(model.folds.values()):
                getattr(layer, role).factor = np.exp(rng.normal(size=model.hidden))
    if has_scales and "last" in model.folds.values():
        found.last.factor = np.exp(rng.normal(size=model.hidden))
    return found


def values(tensor: Tensor) -> np.ndarray:
    raw = bytearray(tensor.nbytes)
    tensor.read(0, memoryview(raw))
    return np.frombuffer(raw, np.float32).reshape(tensor.shape).copy()


def opened(folder: Path) -> tuple[list[Tensor], Architecture]:
    checkpoint = read(str(folder)).checkpoint
    assert checkpoint is not None
    return checkpoint.tensors, architecture(checkpoint.tensors, config_of(checkpoint), folder.name)


def tried(name: str, sizes: dict[str, object], place: Path) -> str:
    """What came of one architecture."""
    import transformers

    torch.manual_seed(1)
    suffixes = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
    kind = next(
        k
        for s in suffixes
        if (k := getattr(transformers, name + s, None)) and not (s == "ForCausalLM" and "ert" in name)
    )
    net = kind(getattr(transformers, name + "Config")(**sizes)).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if weight.dim() == 1 else 0.05))
    net.save_pretrained(place / name)
    try:
        tensors, model = opened(place / name)
    except KinbaseError as error:
        return f"refused: {error}"
    tokens = torch.randint(0, 120, (2, 7), generator=torch.Generator().manual_seed(0))
    rng, told = np.random.default_rng(0), []
    for has_scales in (False, True):
        symmetry = at_random(model, rng, has_scales=has_scales)
        new = relabelled({t.name: t for t in tensors}, model, symmetry)
        folder = place / f"{name}-{has_scales}"
        folder.mkdir()
        save_file(
            {n: torch.from_numpy(values(t)) for n, t in new.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        (folder / "config.json").write_text((place / name / "config.json").read_text())
        with torch.no_grad():
            before, after = (
                net(input_ids=tokens).logits,
                kind.from_pretrained(folder).eval()(input_ids=tokens).logits,
            )
        others, again = opened(folder)
        back = relabelled({t.name: t for t in others}, again, match(model, again).symmetry)
        pairs = [(values(t), values(back[t.name])) for t in tensors]
        found = max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)
        told.append(f"logits {float((after - before).abs().max() / before.abs().max()):.1e} back {found:.1e}")
    return ("signs, " if model.has_signs else "") + "; with scales ".join(told)


def main() -> None:
    if find_spec("transformers") is None:
        print("transformers is not installed: nothing is done")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in MODELS.items():
            print(f"{name:11} {tried(name, dict(sizes), Path(folder))}", flush=True)


if __name__ == "__main__":
    main()
