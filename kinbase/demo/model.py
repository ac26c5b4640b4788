"""A real language model that learns in seconds: a small Llama on six-digit exercises.

The model has Llama's architecture and tensor names, so its checkpoints open in transformers'
LlamaForCausalLM. An exercise is fourteen tokens, `task d d d d d d = a a a a a a`: a task token, six
digits, an equals sign, and the six digits of the answer, which is all that the model is trained and judged on.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

DIGITS = 6
EQUALS = 10
FIRST_TASK = 11
HELD_OUT = 17
"""A six-digit number divisible by this (a prime) is only ever examined, the others only trained on."""


@dataclass(frozen=True)
class Config:
    """The shape of a model; the defaults are the demo's."""

    vocab_size: int = 16
    hidden_size: int = 96
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    max_positions: int = 32
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    def to_llama(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """Return the config.json that transformers reads."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": None,
            "head_dim": self.head_size,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.hidden_size**-0.5,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.heads,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "vocab_size": self.vocab_size,
        }

    @classmethod
    def from_llama(cls, record: Mapping[str, Any]) -> "Config":
        """Read back what `to_llama` wrote."""
        return cls(
            vocab_size=record["vocab_size"],
            hidden_size=record["hidden_size"],
            intermediate_size=record["intermediate_size"],
            layers=record["num_hidden_layers"],
            heads=record["num_attention_heads"],
            max_positions=record["max_position_embeddings"],
            rope_theta=record["rope_theta"],
            norm_eps=record["rms_norm_eps"],
        )


# The model. Attribute names are Llama's, because they become the tensor names of the checkpoint.


class Attention(nn.Module):  # type: ignore[misc]
    """Causal self-attention with rotary positions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map hidden (batch, length, width) to the same shape; cos and sin are (length, head size)."""
        batch, length, width = hidden.shape
        split = (batch, length, self.heads, width // self.heads)
        query = rotate(self.q_proj(hidden).view(split).transpose(1, 2), cos, sin)
        key = rotate(self.k_proj(hidden).view(split).transpose(1, 2), cos, sin)
        value = self.v_proj(hidden).view(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (batch, heads, length, head size), pairing element i with i + half."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class MLP(nn.Module):  # type: ignore[misc]
    """The gated feed-forward block, SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden (batch, length, width) to the same shape."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):  # type: ignore[misc]
    """Attention, then the feed-forward block, each on a normed copy and added to the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map hidden (batch, length, width) to the same shape."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):  # type: ignore[misc]
    """Everything between the tokens and the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to hidden states (batch, length, width)."""
        even = torch.arange(0, self.config.head_size, 2) / self.config.head_size
        angles = torch.arange(tokens.shape[1])[:, None] * self.config.rope_theta**-even
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.norm(hidden)


class Transformer(nn.Module):  # type: ignore[misc]
    """A Llama language model in float32, its first weights drawn from `seed`."""

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            if weight.dim() == 2:  # the norms stay at one
                nn.init.normal_(weight, std=config.hidden_size**-0.5, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (batch, length) to logits (batch, length, vocabulary)."""
        return self.lm_head(self.model(tokens))


# The exercises. A task maps digits (batch, 6), each 0..9, to its answer (batch, 6).


TASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse": lambda digits: digits.flip(1),
    "sort": lambda digits: digits.sort(1).values,
    "rank": lambda digits: (digits[:, None, :] < digits[:, :, None]).sum(2),
    "total": lambda digits: digits.cumsum(1) % 10,
    "peak": lambda digits: digits.cummax(1).values,
}
"""reverse: last digit first. sort: ascending. rank: for each digit, how many of the six are smaller.
total: the running sum, modulo 10. peak: the largest digit so far."""


def _digits_of(numbers: Tensor) -> Tensor:
    """Write numbers (batch,) as their six decimal digits (batch, 6)."""
    return numbers[:, None] // 10 ** torch.arange(DIGITS - 1, -1, -1) % 10


def draw(task: str, count: int, generator: torch.Generator, *, held_out: bool = False) -> Tensor:
    """Draw exercises of one task: tokens (count, 14), of numbers never trained on if held_out."""
    numbers = torch.randint(10**DIGITS // HELD_OUT, (count,), generator=generator) * HELD_OUT
    if not held_out:
        numbers += torch.randint(1, HELD_OUT, (count,), generator=generator)
    digits = _digits_of(numbers)
    mark = FIRST_TASK + list(TASKS).index(task)
    return torch.cat(
        (torch.full((count, 1), mark), digits, torch.full((count, 1), EQUALS), TASKS[task](digits)), dim=1
    )


# Training and judging.


def train(
    model: nn.Module,
    task_mix: Mapping[str, float],
    steps: int,
    lr: float,
    seed: int,
    *,
    batch: int = 64,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train in place the parameters that want a gradient; task_mix gives each task's share of a batch."""
    generator = torch.Generator().manual_seed(seed)
    counts = {task: round(batch * share / sum(task_mix.values())) for task, share in task_mix.items()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    warmup = max(1, steps // 20)
    for step in range(steps):
        scale = min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        tokens = torch.cat([draw(task, count, generator) for task, count in counts.items()])
        loss = F.cross_entropy(
            model(tokens[:, :-1])[:, -DIGITS:].flatten(0, 1), tokens[:, -DIGITS:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if progress is not None:
            progress((step + 1) / steps)


def evaluate(model: nn.Module, task: str, n: int) -> tuple[float, float]:
    """Return the share of n held-out exercises answered without a fault, and its standard error.

    The exercises are the same for every model. Predicting each answer token from the true ones before
    it is greedy decoding as long as all are right, so a fault counts exactly where decoding would make one.
    """
    generator = torch.Generator().manual_seed(list(TASKS).index(task))
    faultless = 0
    with torch.inference_mode():
        for tokens in draw(task, n, generator, held_out=True).split(256):
            guesses = model(tokens[:, :-1])[:, -DIGITS:].argmax(-1)
            faultless += int((guesses == tokens[:, -DIGITS:]).all(1).sum())
    accuracy = faultless / n
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / (n - 1))


# Checkpoints.


def save(model: Transformer, folder: Path) -> None:
    """Write config.json and model.safetensors, the weights rounded to bfloat16."""
    write_weights(
        model.config, {name: weight.detach() for name, weight in model.state_dict().items()}, folder
    )


def write_weights(config: Config, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write float32 weights as a bfloat16 checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_llama(), indent=2) + "\n")
    rounded = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Transformer:
    """Read a checkpoint folder back into a float32 model."""
    model = Transformer(Config.from_llama(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


# Low-rank adapters. Attribute names are PEFT's, for the same reason.


class LoraLinear(nn.Module):  # type: ignore[misc]
    """A frozen linear layer plus alpha / r * B @ A; B starts at zero, so training starts at the base."""

    def __init__(self, base_layer: nn.Linear, r: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.Linear(base_layer.in_features, r, bias=False)
        self.lora_B = nn.Linear(r, base_layer.out_features, bias=False)
        self.scaling = alpha / r
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        return self.base_layer(x) + self.scaling * self.lora_B(self.lora_A(x))


def add_lora(model: Transformer, targets: tuple[str, ...], r: int, alpha: float, seed: int) -> None:
    """Freeze the model and put an adapter on every linear layer whose last name is in targets."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in targets:
                setattr(module, name, LoraLinear(child, r, alpha, generator))


def save_adapter(
    model: Transformer, folder: Path, *, base: str, targets: tuple[str, ...], r: int, alpha: float
) -> None:
    """Write the adapter that `add_lora` put on the model in PEFT's format, in float32 as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    factors = {
        f"base_model.model.{name}": weight.contiguous()
        for name, weight in model.state_dict().items()
        if ".lora_" in name
    }
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    record = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": r,
        "revision": None,
        "target_modules": sorted(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(record, indent=2) + "\n")
