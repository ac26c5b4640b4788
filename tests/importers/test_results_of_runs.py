"""Files of results: which model each is about, and everything that makes two results comparable."""

import json

import pytest
from records import only, read

from kinbase.checkpoint import Edge, Facts, Score
from kinbase.importers import lm_eval


def scores(write, document, name="results_1.json"):
    return only(Score, read(lm_eval, write(name, json.dumps(document))))


def run(args, results=None, **more):
    config = {"model": "hf", "model_args": args, **more.pop("config", {})}
    return {
        "results": results or {"piqa": {"acc,none": 0.5, "acc_stderr,none": 0.01}},
        "config": config,
        **more,
    }


@pytest.mark.parametrize(
    ("args", "model"),
    [
        ("pretrained=lab/m", "lab/m"),
        ("pretrained=lab/m,revision=step1000", "lab/m@step1000"),
        ("pretrained=lab/m,revision=main,dtype=float16", "lab/m"),
        ("pretrained=https://huggingface.co/lab/m/", "lab/m"),
        ("pretrained=lab/m,gguf_file=m-Q4_K_M.gguf", "lab/m/m-Q4_K_M.gguf"),
        ("pretrained=lab/m,gguf_file=m-Q8_0.gguf,revision=v2", "lab/m/m-Q8_0.gguf@v2"),
        ("pretrained=lab/m,peft=lab/lora", "lab/lora"),
        ("pretrained=lab/m,delta=lab/delta", "lab/delta"),
        ("pretrained=lab/m,load_in_4bit=True", "lab/m:4bit"),
        ("pretrained=lab/m,load_in_8bit=True", "lab/m:8bit"),
        ({"pretrained": "lab/m", "revision": "r1"}, "lab/m@r1"),
        ("pretrained=lab/m,peft=None,revision=None", "lab/m"),
        ("pretrained=lab/m,max_memory={0:10,1:20},revision=x", "lab/m@x"),
    ],
)
def test_what_was_run_is_the_model(write, args, model):
    assert {s.model for s in scores(write, run(args, model_name="lab/m"))} == {model}


def test_an_adapter_that_was_run_is_one_of_what_it_was_run_on(write):
    records = read(lm_eval, write("results_1.json", json.dumps(run("pretrained=lab/m,peft=lab/lora"))))
    assert [(e.parent, e.relation, e.child, e.evidence) for e in only(Edge, records)] == [
        ("lab/m", "adapter", "lab/lora", "reported")
    ]


def test_the_commit_is_told_of_the_revision_that_was_run(write):
    document = run("pretrained=lab/m", config={"model_revision": "step10", "model_sha": "ab" * 20})
    records = read(lm_eval, write("results_1.json", json.dumps(document)))
    assert only(Facts, records) == [Facts("lab/m@step10", revision="ab" * 20)]


@pytest.mark.parametrize("shots", [0, 5])
def test_the_first_layout_has_its_shots_in_the_configuration(write, shots):
    document = {"results": {"arc_easy": {"acc": 0.4, "acc_stderr": 0.01}}, "versions": {"arc_easy": 0},
                "config": {"model": "hf-causal", "model_args": "pretrained=lab/m",
                "num_fewshot": shots, "limit": None}}  # fmt: skip
    (score,) = scores(write, document)
    assert (score.benchmark, score.metric, score.value, score.stderr, score.n_shot) == (
        "arc_easy",
        "acc",
        0.4,
        0.01,
        shots,
    )


def test_a_group_has_the_shots_that_all_its_tasks_have(write):
    results = {name: {"acc,none": 0.5} for name in ("all", "inner", "a", "b", "c", "odd", "d")}
    document = run(
        "pretrained=lab/m", results, groups={"all": {"acc,none": 0.5}},
        group_subtasks={"all": ["inner", "c"], "inner": ["a", "b"], "odd": ["a", "d"], "a": [], "b": []},
        **{"n-shot": {"a": 5, "b": 5, "c": 5, "d": 0}},
    )  # fmt: skip
    assert {s.benchmark: s.n_shot for s in scores(write, document)} == {
        "all": 5, "inner": 5, "a": 5, "b": 5, "c": 5, "odd": None, "d": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "samples", "split"),
    [
        (10, None, "validation[:10]"),
        (10.0, None, "validation[:10]"),
        (0.05, None, "validation[:0.05]"),
        (None, None, "validation"),
        (10, {"original": 5, "effective": 5}, "validation"),
        (None, {"original": 50, "effective": 7}, "validation[:7]"),
    ],
)
def test_a_limited_run_says_so_in_its_split(write, limit, samples, split):
    document = run(
        "pretrained=lab/m", config={"limit": limit}, configs={"piqa": {"validation_split": "validation"}}
    )
    if samples:
        document["n-samples"] = {"piqa": samples}
    assert [s.split for s in scores(write, document)] == [split]


def test_template_system_prompt_and_turns_part_results(write):
    chat = {"chat_template": "{{ messages }}", "chat_template_sha": "ab12cd34ef" * 6}
    variants = [{}, chat, {**chat, "system_instruction": "Be brief."}, {**chat, "system_instruction": "Be long."},
                {**chat, "fewshot_as_multiturn": True}, {"chat_template": "other"},
                {"system_instruction": "Be brief."}]  # fmt: skip
    found = [scores(write, run("pretrained=lab/m", **more))[0].template for more in variants]
    assert found[0] is None and found[1] == "chat ab12cd34" and found[4] == "chat ab12cd34, multiturn"
    assert len(set(found)) == len(found)
    nothing = {"chat_template": None, "system_instruction": None, "fewshot_as_multiturn": False}
    assert scores(write, run("pretrained=lab/m", **nothing))[0].template is None


def test_which_way_a_metric_goes_is_kept(write):
    results = {"w": {"word_perplexity,none": 9.0, "acc,none": 0.5, "new,none": 1.0}}
    (ppl, acc, new) = scores(
        write,
        run("pretrained=lab/m", results, higher_is_better={"w": {"word_perplexity": False, "acc": True}}),
    )
    assert (ppl.higher_is_better, acc.higher_is_better, new.higher_is_better) == (False, True, None)


def test_lighteval(write):
    document = {
        "config_general": {"lighteval_sha": "1" * 40, "max_samples": None, "model_name": "org/m",
                           "model_config": {"model_name": "org/m", "revision": "v2"}},
        "results": {"gsm8k|0": {"extractive_match": 0.7, "extractive_match_stderr": 0.02},
                    "leaderboard|mmlu:anatomy|5": {"acc": 0.4}, "leaderboard|mmlu:_average|5": {"acc": 0.45},
                    "all": {"acc": 0.55, "extractive_match": 0.7}},
    }  # fmt: skip
    found = scores(write, document)
    assert [(s.model, s.benchmark, s.metric, s.value, s.n_shot, s.source) for s in found] == [
        ("org/m@v2", "gsm8k", "extractive_match", 0.7, 0, "lighteval"),
        ("org/m@v2", "mmlu_anatomy", "acc", 0.4, 5, "lighteval"),
        ("org/m@v2", "mmlu", "acc", 0.45, 5, "lighteval"),
    ]
    document["config_general"] |= {
        "max_samples": 10,
        "model_config": {"model_name": "org/m", "system_prompt": "Think."},
    }
    first = scores(write, document)[0]
    assert first.model == "org/m" and first.split == "test[:10]" and first.template.startswith("system ")
