"""Which model a file of results is about, and how it was asked: what makes two results comparable.

A revision, a GGUF file, an adapter and a checkpoint loaded in fewer bits are models of their own: their results are
not those of the repository they came from.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Record
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.ids import canonical, revised, says_nothing
from kinbase.checkpoint.untrusted import count, model_id, name, number

_BITS = {"load_in_4bit": "4bit", "load_in_8bit": "8bit"}
_ON = (True, "True", "true", "1", 1)
_NOT_METRICS = ("alias", "name", "sample_len", "sample_count", "samples")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def mapping(value: object) -> dict[str, object]:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def beside_checkpoint(path: Path) -> bool:
    """Whether a file of results lies in the folder of the checkpoint that it is about."""
    return any(is_file(str(path.parent / file)) for file in ("config.json", "adapter_config.json"))


def arguments(stated: object) -> dict[str, object]:
    """`--model_args`, which is a mapping or one text of `key=value` parts; commas within brackets part nothing."""
    if not isinstance(stated, str):
        return mapping(stated)
    return {
        key.strip(): value.strip()
        for key, _, value in (part.partition("=") for part in re.split(r",(?![^\[{(]*[\]})])", stated))
    }


def of_arguments(
    args: Mapping[str, object], stated: object, revision: object, refused: list[str]
) -> Iterator[Record | str]:
    """The name of the model that was run, and what the arguments tell of its making (evidence reported).

    `stated` is what the file calls the model, `revision` the one it gives beside the arguments.
    """
    given = {key: args[key] for key in args if not says_nothing(args[key])}
    plain = model_id(given.get("pretrained") or given.get("model") or given.get("model_name"), refused)
    plain = plain or model_id(stated, refused)
    if plain is None:
        return
    at = (
        name(given.get("revision") or revision, refused)
        if isinstance(given.get("revision") or revision, str)
        else None
    )
    label = revised(plain, at)
    if subfolder := name(given.get("subfolder"), []):
        label = f"{plain}/{subfolder}" + label.removeprefix(plain)
    if file := name(given.get("gguf_file") or given.get("gguf"), []):
        label = f"{plain}/{file}" + label.removeprefix(plain)
    bits = next((bits for key, bits in _BITS.items() if given.get(key) in _ON), None)
    bits = bits or (
        "gptq" if given.get("gptq") or given.get("autogptq") not in (None, False, "False", "false") else None
    )
    if bits:
        label += f":{bits}"
    for key, relation in (
        ("peft", "adapter"),
        ("lora_local_path", "adapter"),
        ("lora", "adapter"),
        ("delta", "finetune"),
    ):
        if changed := model_id(given.get(key), refused):
            if changed != label:
                yield Edge(label, relation, "reported", canonical(changed))
            label = canonical(changed)
    yield label


def facts(model: str | None, sha: object, parameters: object) -> Iterator[Facts]:
    """The commit and the size of a model, where a file of results gives them."""
    revision = sha if isinstance(sha, str) and _COMMIT.fullmatch(sha) else None
    size = count(parameters)
    if revision or size:
        yield Facts(model, revision=revision, parameters=size or None)


def template(document: Mapping[str, object], *more: Mapping[str, object]) -> str | None:
    """How the questions were put, by digests of the texts: chat template, system prompt, examples as turns."""
    said: dict[str, object] = {}
    for part in (*more, document):
        said |= {
            key: value
            for key, value in part.items()
            if not says_nothing(value) and value not in (False, "False", "false")
        }
    parts = []
    chat = said.get("chat_template") or said.get("chat_template_name")
    applied = said.get("apply_chat_template") or said.get("use_chat_template")
    if chat or said.get("chat_template_sha") or applied:
        parts.append(" ".join(filter(None, ("chat", _digest(chat, said.get("chat_template_sha"))))))
    system = said.get("system_instruction") or said.get("system_prompt")
    if system or said.get("system_instruction_sha"):
        parts.append(" ".join(filter(None, ("system", _digest(system, said.get("system_instruction_sha"))))))
    if said.get("fewshot_as_multiturn"):
        parts.append("multiturn")
    return ", ".join(parts) or None


def _digest(text: object, sha: object) -> str | None:
    if isinstance(sha, str) and _COMMIT.fullmatch(sha):
        return sha[:8]
    if isinstance(text, str) and text not in ("True", "true"):
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
    return None


def measured(task: str, metrics: object, refused: list[str]) -> Iterator[tuple[str, float, float | None]]:
    """Metric, value and standard error of a task; "N/A" errors are none, other texts are no metrics."""
    entries = mapping(metrics)
    for key, stated in entries.items():
        metric, _, filtered = key.partition(",")
        if metric.endswith("_stderr") or key in _NOT_METRICS or isinstance(stated, dict | list):
            continue
        value = number(stated)
        label = name(metric if filtered in ("", "none") else key, refused)
        if value is None or label is None:
            refused.append(f"{task} {shown(key)}: {shown(stated)} is no score")
            continue
        stderr = entries.get(f"{metric}_stderr" + (f",{filtered}" if filtered else ""))
        yield label, value, number(stderr)


def limited(split: str | None, limit: object) -> str | None:
    """A split of which only so many were tested: the first documents, or a share below 1."""
    most = number(limit)
    if most is None or most <= 0:
        return split
    told = str(int(most)) if most >= 1 else f"{most:.4g}"
    return f"{split or 'test'}[:{told}]"
