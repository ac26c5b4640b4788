"""What other tools call the columns of the public views, and the metric that a benchmark is usually told by."""

import re
from collections.abc import Iterable

OTHER_NAMES = {
    "model": ("model_name", "model_id", "model_path", "hf_model", "repo", "repo_id"),
    "benchmark": (
        "task",
        "dataset",
        "benchmark_name",
        "task_name",
        "dataset_name",
        "eval",
        "test",
    ),
    "metric": ("metric_name", "measure"),
    "value": ("score", "result", "metric_value"),
    "stderr": ("std_err", "standard_error", "se", "stderror"),
    "n_shot": ("num_fewshot", "n_shots", "shots", "fewshot", "few_shot", "num_few_shot", "nshot", "k_shot"),
    "split": ("subset", "eval_split", "dataset_split"),
    "limit": ("max_samples", "num_samples_limit"),
    "template": ("chat_template", "prompt_template"),
    "higher_is_better": ("greater_is_better", "more_is_better"),
    "source": ("harness", "origin"),
    "evaluated_at": ("date", "evaluation_date", "eval_date", "timestamp"),
    "revision": ("model_revision", "commit", "model_sha", "sha"),
    "file": ("gguf_file", "filename", "model_file"),
    "adapter": ("peft", "lora"),
    "parent": ("base_model", "parent_model", "ancestor"),
    "child": ("derived_model", "child_model", "descendant"),
    "relation": ("base_model_relation", "relationship", "edge_type"),
    "weight": ("coefficient",),
    "license": ("licence", "hub_license"),
    "parameters": ("num_parameters", "n_params", "params"),
    "created_at": ("created", "release_date"),
    "name": ("model", "model_name", "model_id"),
    "base": ("base_model",),
}
"""By the name of a view's column, the names that stand for it; each in any case, with spaces, dashes or dots for _."""

_USUAL = (
    (r"gsm8?k|math|drop|triviaqa|trivia_qa|nq|squad|ifeval", "exact_match"),
    (r"arc|hellaswag|openbookqa|piqa|sciq|bbh|gpqa|musr", "acc_norm"),
    (r"truthfulqa.*mc_?2|truthfulqa", "mc2"),
    (r"humaneval|mbpp|livecodebench|bigcodebench", "pass@1"),
    (r"wikitext|c4|ptb|pile", "word_perplexity"),
    (r"mmlu|winogrande|boolq|copa|agieval|ceval|cmmlu|race|lambada|siqa|commonsense", "acc"),
    (r"average|avg|mean", "mean"),
)


def recognised(columns: Iterable[str]) -> dict[str, str]:
    """Each column of a table under the name that the views have for it: its own name comes first, another's only once."""
    listed = list(columns)
    plain = {_plain(column): column for column in reversed(listed)}
    found = {column: column for column in listed}
    for name, others in OTHER_NAMES.items():
        if name in found:
            continue
        spelled = next((other for other in (name, *others) if other in plain and plain[other] in found), None)
        if spelled is None or (name in ("name", "base") and not _is_of_models(plain)):
            continue
        original = plain[spelled]
        if found.get(original) == original and (original == spelled or _plain(original) == spelled):
            found[name] = found.pop(original)
    return found


def _is_of_models(plain: dict[str, str]) -> bool:
    """Whether a table tells facts of models, and neither edges nor scores."""
    facts = {"license", "licence", "parameters", "params", "architecture", "dtype", "created_at"}
    return (
        bool(facts & plain.keys())
        and not {"parent", "child", "value", "score", "benchmark", "task"} & plain.keys()
    )


def _plain(column: str) -> str:
    return re.sub(r"[\s.\-]+", "_", column.strip().lower())


def usual_metric(benchmark: str) -> str:
    """The metric a benchmark's results are usually told by; "score" for one that is not known."""
    name = benchmark.lower()
    return next((metric for pattern, metric in _USUAL if re.search(rf"(^|[^a-z])({pattern})", name)), "score")
