"""Which model a file of results is about, and how it was asked: what makes two results comparable.

A revision, a GGUF file, an adapter and a checkpoint loaded in fewer bits are models of their own: their results are
not those of the repository they came from.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kinbase.checkpoint import Edge, Facts, Record
from kinbase.checkpoint.files import is_file, shown
from kinbase.checkpoint.ids import MAIN, canonical, revised, says_nothing
from kinbase.checkpoint.untrusted import count, model_id, name, number

_BITS = {"load_in_4bit": "4bit", "load_in_8bit": "8bit"}
_ON = (True, "True", "true", "1", 1)
_NOT_METRICS = ("alias", "name", "sample_len", "sample_count", "samples")
_VERSION = re.compile(r"[\w.-]{1,40}")
_THINKS = ("enable_thinking", "thinking", "reasoning")
_IN_FEWER_BITS = ("fp8", "bitsandbytes", "int8", "experts_int8", "deepspeedfp", "torchao", "rtn", "tpu_int8")
"""vLLM's ways of quantising plain weights as they are loaded; its others tell what the files hold already."""
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
    quantised = given.get("quantization")
    if bits is None and quantised in _IN_FEWER_BITS and str(quantised) not in label.lower():
        bits = str(quantised)
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
    """How the questions were put and answered, by digests of the texts: chat template, system prompt, examples as turns,
    settings of generation, and whether the model was to think first.
    """
    said: dict[str, object] = {}
    for part in (*more, document):
        said |= {
            key: value
            for key, value in part.items()
            if not says_nothing(value) and value not in (False, "False", "false")
        }
    parts = []
    sampled = said.get("gen_kwargs") or said.get("generation_parameters")
    if isinstance(sampled, dict):
        sampled = json.dumps(
            {k: v for k, v in sampled.items() if not says_nothing(v)}, sort_keys=True, default=str
        )
    chat = said.get("chat_template") or said.get("chat_template_name")
    applied = said.get("apply_chat_template") or said.get("use_chat_template")
    if chat or said.get("chat_template_sha") or applied:
        parts.append(" ".join(filter(None, ("chat", _digest(chat, said.get("chat_template_sha"))))))
    system = said.get("system_instruction") or said.get("system_prompt")
    if system or said.get("system_instruction_sha"):
        parts.append(" ".join(filter(None, ("system", _digest(system, said.get("system_instruction_sha"))))))
    if said.get("fewshot_as_multiturn"):
        parts.append("multiturn")
    if isinstance(sampled, str) and not says_nothing(sampled):
        parts.append(f"generation {_digest(sampled, None)}")
    thinks = next((part[key] for part in (*more, document) for key in _THINKS if key in part), None)
    if isinstance(thinks, bool) or str(thinks).lower() in ("true", "false"):
        parts.append("thinking" if str(thinks).lower() == "true" else "no thinking")
    return ", ".join(parts) or None


def versioned(template: str | None, version: object) -> str | None:
    """A template with the version of the task or prompt: results of two versions do not compare.

    A task's version is raised where its questions, or how answers are scored, change. "Yaml" is lm-eval 0.4.0's word for none.
    """
    told = f"{version:g}" if isinstance(version, int | float) and not isinstance(version, bool) else version
    if not isinstance(told, str) or says_nothing(told) or told == "Yaml" or not _VERSION.fullmatch(told):
        return template
    return ", ".join(filter(None, (template, f"version {told}")))


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
        if not key.strip() and says_nothing(stated):
            continue  # a group without a mean of its own
        value = number(stated)
        label = name(metric if filtered in ("", "none") else key, refused)
        if value is None or label is None:
            refused.append(f"{task} {shown(key)}: {shown(stated)} is no score")
            continue
        stderr = entries.get(f"{metric}_stderr" + (f",{filtered}" if filtered else ""))
        yield label, value, number(stderr)


def at_revision(split: str | None, revision: str | None) -> str | None:
    """A split of one revision of a dataset: results on two revisions do not compare."""
    return split if revision in (None, *MAIN) else f"{split or ''}@{str(revision)[:12]}"


def limited(split: str | None, limit: object) -> str | None:
    """A split of which only so many were tested: the first documents, or a share below 1."""
    most = number(limit)
    if most is None or most <= 0:
        return split
    told = str(int(most)) if most >= 1 else f"{most:.4g}"
    return f"{split or 'test'}[:{told}]"
