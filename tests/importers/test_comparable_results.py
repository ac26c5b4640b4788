"""What makes two results comparable is part of what is stored of each, whatever file says it."""

import json

import pytest
from records import only, problem, read

from kinbase.checkpoint import Problem, Score
from kinbase.importers import card, eval_results, evaluations, lm_eval


def index(write, *results, names=("m",)):
    entries = [{"name": name, "results": list(results[i :: len(names)])} for i, name in enumerate(names)]
    header = json.dumps({"model-index": entries})
    return only(Score, read(card, write("README.md", f"---\n{header}\n---\n")))


def result(dataset, *metrics):
    return {"dataset": dataset, "metrics": list(metrics)}


ACC = {"type": "acc", "value": 0.5}


@pytest.mark.parametrize(
    ("dataset", "benchmark"),
    [
        ({"name": "GLUE", "type": "glue", "config": "sst2"}, "GLUE (sst2)"),
        ({"name": "glue", "type": "nyu-mll/glue", "args": "mrpc"}, "glue (mrpc)"),
        ({"name": "Common Voice 8.0", "type": "mozilla-foundation/common_voice_8_0", "args": "tr"}, "Common Voice 8.0 (tr)"),
        ({"type": "xnli", "config": "fr"}, "xnli (fr)"),
        ({"name": "GSM8K", "type": "openai/gsm8k", "config": "main"}, "GSM8K"),
        ({"name": "GLUE SST2", "type": "glue", "config": "sst2"}, "GLUE SST2"),
        ({"name": "MTEB Amazon (en)", "type": "mteb/amazon", "config": "en"}, "MTEB Amazon (en)"),
        ({"name": "Winogrande (5-shot)", "type": "winogrande", "config": "winogrande_xl"}, "Winogrande"),
    ],
)  # fmt: skip
def test_the_configuration_of_a_dataset_is_part_of_the_benchmark(write, dataset, benchmark):
    """Not only where a card has two of them: the other one may stand in another card."""
    assert [s.benchmark for s in index(write, result(dataset, ACC))] == [benchmark]


@pytest.mark.parametrize("key", ["num_few_shot", "num_fewshot", "n_shot", "few_shot"])
@pytest.mark.parametrize("beside_metric", [False, True])
def test_examples_are_read_under_each_of_their_names(write, key, beside_metric):
    args = {"args": {key: 5}}
    dataset, metric = ({}, args) if beside_metric else (args, {})
    assert [s.n_shot for s in index(write, result({"name": "X", **dataset}, ACC | metric))] == [5]


def test_two_revisions_of_a_dataset_are_two_tests(write):
    revisions = ("a" * 40, "b" * 40, "main", None)
    results = [result({"name": "X", "split": "dev", "revision": r}, ACC) for r in revisions]
    assert {s.split for s in index(write, *results)} == {"dev@" + "a" * 12, "dev@" + "b" * 12, "dev"}
    path = write(".eval_results/x.yaml", "- dataset: {id: o/x, revision: abc1234}\n  value: 1\n")
    assert [s.split for s in only(Score, read(eval_results, path))] == ["@abc1234"]


@pytest.mark.parametrize(
    ("kind", "title", "metric"),
    [
        ("f1", "F1 (macro)", "f1 (macro)"),
        ("f1", "Micro F1", "f1 (micro)"),
        ("accuracy", "Top-5 Accuracy", "accuracy (top-5)"),
        ("accuracy", "Top 1 Accuracy", "accuracy"),
        ("f1_macro", "F1 macro", "f1_macro"),
        ("accuracy", "Test Accuracy", "accuracy"),
    ],
)
def test_how_a_metric_is_averaged_is_part_of_it(write, kind, title, metric):
    found = index(write, result({"name": "X"}, {"type": kind, "name": title, "value": 0.5}))
    assert [s.metric for s in found] == [metric]


def test_entries_of_two_names_that_differ_are_told_apart(write):
    results = [result({"name": "X"}, ACC), result({"name": "X"}, ACC | {"value": 0.7})]
    assert {(s.source, s.value) for s in index(write, *results, names=("small", "large"))} == {
        ("card", 0.5),
        ("card (large)", 0.7),
    }
    assert len(index(write, results[0], results[0], names=("small", "large"))) == 1


def harness(write, args="pretrained=o/m", results=None, **more):
    config = {"model": "hf", "model_args": args, **more.pop("config", {})}
    document = {"results": results or {"t": {"acc,none": 0.5}}, "config": config, **more}
    return only(Score, read(lm_eval, write("results_1.json", json.dumps(document))))


@pytest.mark.parametrize(
    ("more", "template"),
    [
        ({"versions": {"t": 2}}, "version 2"),
        ({"versions": {"t": 2.0}}, "version 2"),
        ({"versions": {"t": 1.5}, "fewshot_as_multiturn": True}, "multiturn, version 1.5"),
        ({"versions": {"t": "Yaml"}}, None),
        ({"versions": {"t": None}}, None),
        ({"args": "pretrained=o/m,enable_thinking=False"}, "no thinking"),
        ({"args": {"pretrained": "o/m", "enable_thinking": True}}, "thinking"),
        ({"config": {"gen_kwargs": None}}, None),
    ],
)
def test_how_a_task_was_put_is_its_template(write, more, template):
    assert {s.template for s in harness(write, **more)} == {template}


def test_settings_of_generation_are_told_by_a_digest(write):
    texts = ("temperature=0.6", "temperature=0.7", {"temperature": 0.6}, {"temperature": 0.6, "top_p": None})
    found = [harness(write, config={"gen_kwargs": text})[0].template for text in texts]
    assert all(each.startswith("generation ") for each in found)
    assert len(set(found)) == 3 and found[2] == found[3]


def test_a_group_has_the_version_of_its_tasks_where_they_have_one(write):
    results = {task: {"acc,none": 0.5} for task in ("group", "a", "b")}
    groups = {"group": ["a", "b"]}
    for versions, template in (({"a": 1.0, "b": 1}, "version 1"), ({"a": 1.0, "b": 2.0}, None)):
        found = harness(write, results=results, versions=versions, group_subtasks=groups)
        assert {s.template for s in found if s.benchmark == "group"} == {template}


def test_a_group_without_a_mean_is_no_news(write):
    results = {"group": {" ": " ", "alias": "group"}, "t": {"acc,none": 0.5}}
    path = write(
        "results_1.json", json.dumps({"results": results, "config": {"model_args": "pretrained=o/m"}})
    )
    assert not only(Problem, read(lm_eval, path))


@pytest.mark.parametrize(
    ("args", "model"),
    [
        ("pretrained=o/m,quantization=fp8", "o/m:fp8"),
        ("pretrained=o/m-FP8,quantization=fp8", "o/m-FP8"),
        ("pretrained=o/m-AWQ,quantization=awq", "o/m-AWQ"),
    ],
)
def test_weights_quantised_as_they_are_loaded_are_another_model(write, args, model):
    assert {s.model for s in harness(write, args)} == {model}


def test_the_name_of_a_folder_of_results_is_an_id(write):
    assert {s.model for s in harness(write, "", model_name_sanitized="o__m")} == {"o/m"}


def test_versions_of_tasks_and_prompts_elsewhere(write):
    document = {
        "config_general": {"lighteval_sha": "x", "model_name": "o/m"},
        "results": {"lighteval|t|5": {"em": 0.5}},
    }
    document["versions"] = {"lighteval|t|5": 1}
    found = read(lm_eval, write("results_2.json", json.dumps(document)))
    assert [s.template for s in only(Score, found)] == ["version 1"]
    text = "dataset,version,metric,mode,m-hf\nt,a4b54d,accuracy,gen,51.6\nu,-,average,gen,50\n"
    assert [s.template for s in only(Score, read(evaluations, write("summary.csv", text)))] == [
        "version a4b54d",
        None,
    ]


def test_parts_of_a_split_of_helm_are_two_results(write):
    names = ({"name": "em", "split": "test"}, {"name": "em", "split": "test", "sub_split": "hard"})
    stats = [{"name": name, "mean": mean} for name, mean in zip(names, (0.5, 0.3), strict=True)]
    write("run/run_spec.json", json.dumps({"name": "x:model=o_m", "adapter_spec": {"model": "o/m"}}))
    found = read(evaluations, write("run/stats.json", json.dumps(stats)))
    assert {(s.split, s.value) for s in only(Score, found)} == {("test", 0.5), ("test/hard", 0.3)}


def test_a_value_that_is_none_is_told(write):
    header = json.dumps(
        {"model-index": [{"name": "m", "results": [result({"name": "X"}, ACC | {"value": {"p": 1}})]}]}
    )
    assert "is no score" in problem(read(card, write("README.md", f"---\n{header}\n---\n")))
