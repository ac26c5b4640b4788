"""Lineage and results that other tools leave: Ollama, trainers, MLflow, signers, and evaluation tools."""

import base64
import json

import pytest
from records import only, problem, read

from kinbase.checkpoint import UNSAID, Alias, Edge, Score
from kinbase.errors import CheckpointError
from kinbase.importers import (
    evaluations,
    lm_eval,
    mergekit,
    mlflow,
    ollama,
    signing,
    trainer_state,
    training_config,
)


def edges(records):
    return [(e.parent, e.relation) for e in only(Edge, records)]


def test_modelfile(write):
    text = '# mine\nFROM hf.co/org/base:Q4_K_M\nSYSTEM """\nFROM nothing\n"""\nPARAMETER temperature 1\n'
    assert edges(read(ollama, write("Modelfile", text))) == [("org/base:Q4_K_M", "conversion")]
    both = read(ollama, write("Modelfile", "from llama3:latest\r\nadapter ./lora\r\n"))
    assert edges(both) == [("llama3", "base"), ("./lora", "adapter")]
    assert not ollama.recognises(str(write("Modelfile", "nothing\n")))


def test_a_modelfile_costs_no_more_than_its_length(write):
    """What is opened and not closed, and lines that only begin like something, a hundred thousand times."""
    assert not ollama.recognises(str(write("Modelfile", " \n" * 400_000 + "FROMx")))
    text = 'LICENSE """x\n' * 50_000 + "FROM org/base\n" + 'SYSTEM """x\n' * 50_001
    assert edges(read(ollama, write("Modelfile", text))) == [("org/base", "conversion")]
    assert edges(read(ollama, write("Modelfile", 'TEMPLATE """ {{ x }}\nFROM a\n'))) == [("a", "conversion")]


AXOLOTL = """
base_model: org/base
adapter: qlora
lora_r: 16
datasets:
  - path: org/data
    type: alpaca
  - path: other/data
sequence_len: 2048
"""
FACTORY = "model_name_or_path: org/base\nstage: sft\nfinetuning_type: %s\ndataset: alpaca,identity\n"


def test_axolotl(write):
    records = read(training_config, write("run.yml", AXOLOTL))
    assert edges(records) == [("org/base", "adapter")]
    (edge,) = only(Edge, records)
    assert edge.detail["datasets"] == ["org/data", "other/data"]
    assert edge.detail["lora_r"] == 16 and edge.detail["tool"] == "axolotl"
    assert edges(read(training_config, write("run.yml", AXOLOTL.replace("adapter: qlora", "adapter:")))) == [
        ("org/base", "finetune")
    ]


@pytest.mark.parametrize(("kind", "relation"), [("lora", "adapter"), ("full", "finetune")])
def test_llama_factory(write, kind, relation):
    records = read(training_config, write("train.yaml", FACTORY % kind))
    assert edges(records) == [("org/base", relation)]
    assert only(Edge, records)[0].detail["datasets"] == ["alpaca", "identity"]


def test_wandb(write):
    text = "wandb_version: 1\n_wandb:\n  value: {cli_version: 0.1}\nmodel_name_or_path:\n  desc: null\n  value: org/base\n"
    assert edges(read(training_config, write("config.yaml", text))) == [("org/base", "finetune")]
    nothing = "wandb_version: 1\nlearning_rate:\n  value: 0.1\n"
    assert edges(read(training_config, write("config.yaml", nothing))) == [(UNSAID, "finetune")]


def test_a_merge_is_no_training(write):
    path = str(write("m.yml", "base_model: o/b\nmerge_method: ties\nmodels: [{model: o/a}]\ndatasets: []\n"))
    assert mergekit.recognises(path) and not training_config.recognises(path)


def test_trainer_state(write):
    history = [{"loss": 2.0, "step": 10}, {"eval_loss": 1.5, "eval_accuracy": 0.4, "eval_runtime": 3, "step": 10},
               {"loss": 1.0, "step": 20, "learning_rate": 0.1}, {"eval_loss": 1.2, "step": 20}]  # fmt: skip
    records = read(
        trainer_state, write("trainer_state.json", json.dumps({"global_step": 20, "log_history": history}))
    )
    assert {(s.benchmark, s.metric, s.split): s.value for s in only(Score, records)} == {
        ("train", "loss", "step 20"): 1.0, ("eval", "loss", "step 20"): 1.2, ("eval", "accuracy", "step 10"): 0.4,
    }  # fmt: skip


def test_mlflow(write):
    text = "run_id: abc\nmodel_uuid: u1\nflavors:\n  transformers: {source_model_name: org/base, task: t}\n"
    records = read(mlflow, write("MLmodel", text))
    assert edges(records) == [("org/base", "finetune")] and only(Edge, records)[0].detail["run_id"] == "abc"
    write("mlruns/1/r1/meta.yaml", "run_id: r1\nrun_name: quick-fox\nend_time: 1700000000000\n")
    write("mlruns/1/r1/params/base_model", "org/base")
    write("mlruns/1/r1/params/adapter", "lora")
    run = write("mlruns/1/r1/metrics/accuracy", "1700000000000 0.5 1\n1700000001000 0.7 2\n").parents[1]
    records = read(mlflow, run)
    assert [(e.parent, e.relation, e.child) for e in only(Edge, records)] == [
        ("org/base", "adapter", "quick-fox")
    ]
    assert [(s.model, s.benchmark, s.value) for s in only(Score, records)] == [("quick-fox", "accuracy", 0.7)]
    logged = write("mlruns/1/models/m-1/meta.yaml", "model_id: m-1\nname: best\nsource_run_id: r1\n").parent
    # A logged model lies beside the runs of its experiment.
    assert [(e.parent, e.child) for e in only(Edge, read(mlflow, logged))] == [("org/base", "best")]


def test_signed_digests_become_names(write):
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "m", "digest": {"sha256": "ab" * 32}}],
    }
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    records = read(signing, write("model.sig", json.dumps({"dsseEnvelope": {"payload": payload}})))
    assert only(Alias, records) == [Alias("sha256:" + "ab" * 32, kind="signed")]
    assert "not verified" in problem(records)
    for broken in ("{}", '{"dsseEnvelope": {"payload": "%%%"}}', '{"dsseEnvelope": {"payload": "e30="}}'):
        with pytest.raises(CheckpointError):
            read(signing, write("model.sig", broken))


def test_lists_of_evaluations(write):
    document = {
        "model": "org/m",
        "evals": [{"task": "gsm8k", "metric": "acc", "score": 0.5, "num_fewshot": 5}, {"task": "x"}],
    }
    records = read(evaluations, write("evals.json", json.dumps(document)))
    assert only(Score, records) == [Score("gsm8k", "acc", 0.5, "org/m", n_shot=5)]
    assert "row 2: no value" in problem(records)


def test_helm(write):
    spec = {
        "name": "mmlu:subject=law,model=org_m",
        "adapter_spec": {"model": "org/m", "max_train_instances": 5},
    }
    write("run/run_spec.json", json.dumps(spec))
    stats = [{"name": {"name": "exact_match", "split": "test"}, "mean": 0.6}, {"name": {"name": "num_prompt_tokens"}, "mean": 9},
             {"name": {"name": "exact_match", "split": "test", "perturbation": {"name": "typos"}}, "mean": 0.1}]  # fmt: skip
    records = read(evaluations, write("run/stats.json", json.dumps(stats)))
    assert only(Score, records) == [
        Score("mmlu:subject=law", "exact_match", 0.6, "org/m", None, 5, "test", "helm")
    ]


def test_opencompass(write):
    text = "dataset,version,metric,mode,org/a,b\nmmlu,-,-,-,-,-\ngsm8k,1d7fe4,accuracy,gen,50.5,-\narc,aa,accuracy,ppl,60,70\n"
    found = [
        (s.model, s.benchmark, s.metric, s.split, s.value)
        for s in only(Score, read(evaluations, write("s.csv", text)))
    ]
    assert found == [("org/a", "gsm8k", "accuracy", "gen", 50.5), ("org/a", "arc", "accuracy", "ppl", 60.0),
                     ("b", "arc", "accuracy", "ppl", 70.0)]  # fmt: skip


def test_a_folder_of_results_as_it_lies(write):
    def run(model):
        return json.dumps(
            {"results": {"piqa": {"acc,none": 0.5}}, "config": {"model_args": f"pretrained={model}"}}
        )

    write("out/org__a/results_2024-01-01T00-00-00.json", run("org/a"))
    out = write("out/org__b/results_2024-01-01T00-00-00.json", run("org/b")).parents[1]
    assert [s.model for s in only(Score, read(evaluations, out))] == ["org/a", "org/b"]
    assert not evaluations.recognises(str(out / "org__a"))
    assert lm_eval.recognises(str(out / "org__a" / "results_2024-01-01T00-00-00.json"))
