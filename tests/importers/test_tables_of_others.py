"""Tables as other tools and people write them: their columns, their cells, their line ends."""

import pytest
from records import only, problem, read

from kinbase.checkpoint import Edge, Problem, Score
from kinbase.importers import table


def scores(write, text, name="t.csv"):
    return only(Score, read(table, write(name, text)))


@pytest.mark.parametrize(
    "text",
    [
        "model,benchmark,metric,value,n_shot\no/m,gsm8k,exact_match,0.5,5\n",
        "Model Name,Task,Metric,Score,Num Fewshot\no/m,gsm8k,exact_match,0.5,5\n",
        "model_id;dataset;metric;result;shots\no/m;gsm8k;exact_match;0.5;5\n",
        "\ufeffmodel,task,metric,score,num_fewshot\r\no/m,gsm8k,exact_match,0.5,5\r\n",
        "model,task,metric,score,num_fewshot\ro/m,gsm8k,exact_match,0.5,5\r",
        "model,task,score,num_fewshot\no/m,gsm8k,0.5,5\n",
    ],
    ids=["ours", "spaces", "semicolons", "windows", "old mac", "usual metric"],
)
def test_scores_by_their_columns(write, text):
    assert scores(write, text.encode()) == [Score("gsm8k", "exact_match", 0.5, "o/m", n_shot=5)]


def test_utf_16_is_text_too(write):
    text = "model,benchmark,metric,value\no/m,b,acc,1\n".encode("utf-16")
    assert [s.model for s in scores(write, text)] == ["o/m"]


def test_all_that_makes_results_comparable_is_read(write):
    text = "model,task,metric,value,revision,file,adapter,limit,split,template,higher_is_better\n"
    text += "o/m,b,loss,1,v1,,,10,dev,chat,false\no/m,b,acc,1,,m-Q4.gguf,,,,,\no/m,b,acc,1,,,o/lora,,,,true\n"
    first, second, third = scores(write, text)
    assert (first.model, first.split, first.template, first.higher_is_better) == (
        "o/m@v1",
        "dev[:10]",
        "chat",
        False,
    )
    assert (second.model, third.model, third.higher_is_better) == ("o/m/m-Q4.gguf", "o/lora", True)


@pytest.mark.parametrize(("benchmark", "metric"), [("MMLU", "acc"), ("arc_challenge", "acc_norm"), ("HumanEval", "pass@1"),
                                                   ("truthfulqa_mc2", "mc2"), ("my own", "score")])  # fmt: skip
def test_a_score_without_a_metric_is_of_the_usual_one(write, benchmark, metric):
    assert [s.metric for s in scores(write, f"model,benchmark,value\nm,{benchmark},1\n")] == [metric]


@pytest.mark.parametrize(
    "header", ["parent,child,relation", "base_model,child,relation", "Parent Model,Child,Base Model Relation"]
)
def test_edges_by_their_columns(write, header):
    edges = only(Edge, read(table, write("t.csv", f"{header}\no/a,o/b,fine-tuned\n")))
    assert edges == [Edge("o/a", "finetune", "reported", "o/b")]


def test_what_is_not_understood_is_one_line_for_the_file(write):
    rows = "o/a,o/a,merge\n,o/b,merge\no/a,None,merge\no/a,o/b,\no/a,o/b,null\n" + "o/a,o/c,uncle\n" * 20
    records = read(table, write("t.csv", "parent,child,relation\n" + rows))
    assert len(only(Problem, records)) == 1
    said = problem(records)
    for words in ("row 1: a model as its own parent", "row 2: no parent", "row 3: no child", "rows 4, 5: no relation",
                  "'uncle' is none that is known, kept as stated", "and 15 more"):  # fmt: skip
        assert words in said
    assert {e.relation for e in only(Edge, records)} == {"uncle"}


def test_a_table_of_something_else_is_left_alone(write):
    assert not table.recognises(str(write("t.csv", "task,score\nx,1\n")))
    assert not table.recognises(str(write("t.csv", "date,test,result\n1,2,3\n")))
