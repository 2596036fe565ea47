"""Continual learning and what is done against forgetting: the matrices of two passages by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.protocols import (
    EXAMPLES,
    OPTIONS,
    Domain,
    answers,
    interrupted_after,
    scored,
    stored,
    tiny_lm,
    update_of,
)
from helpers.tiny_models import tiny_llama, tiny_policy_model
from seal_hf import SelfAdaptingLM
from seal_hf.domains.base import SELF_EDITS
from seal_hf.domains.knowledge.domain import PASSAGE_ONLY
from seal_hf.evaluation.conditions import with_skill
from seal_hf.evaluation.continual import continual
from seal_hf.evaluation.kept_adapters import kept_or_trained
from seal_hf.evaluation.remedies import MERGES, REMEDIES, replayed
from seal_hf.generation.base import draw_seed
from seal_hf.records.continual import ContinualMatrix, continual_table, matrices, save_continual
from seal_hf.records.journal import Journal


SEED, SHARE = 1, 0.5
ORDERS = ([0, 1], [1, 0])


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def chained(lm, tmp_path_factory):
    """Two passages in two orders, the second of which is turned round, with every remedy."""
    folder = tmp_path_factory.mktemp("continual")
    continual(lm, EXAMPLES, folder, num_orders=2, seed=SEED, remedies=REMEDIES, replay_share=SHARE, **OPTIONS)
    return folder


def trials_of(folder, remedy=None):
    folder = folder if remedy is None else folder / "conditions" / f"self-edits-{remedy}"
    return [one for one in Journal(folder / "evaluation").trials(0) if one.condition == SELF_EDITS]


def apart(lm, place):
    """The adapter of a passage by itself."""
    return lm.adapt(update_of(lm, *stored(lm, place)), seed=draw_seed(SEED, place))


def on_top_of(one, update, place):
    """What is trained on top of an adapter, which a model carries as it would a policy."""
    carrying = tiny_lm(one.as_policy(tiny_llama(initializer_range=0.3)))
    return carrying.adapt(update, seed=draw_seed(SEED, place)).on_base()


def with_mean_of(one, other):
    """A model whose weights are the mean of two that are finetuned."""
    model = tiny_llama(initializer_range=0.3)
    with torch.no_grad():
        for adapter in (one, other):
            for name, (lora_a, lora_b) in adapter.layout.views(adapter.weights).items():
                model.get_submodule(name).weight += adapter.layout.scaling * lora_b @ lora_a / 2
    return tiny_lm(model)


def said_by_hand(lm, remedy, order):
    """The answers of a row and column of the matrix, in one order."""
    first, second = ORDERS[order]
    one, other = apart(lm, first), apart(lm, second)
    said = {(0, 0): answers(lm, first), (0, 1): answers(lm, second)}
    if remedy in (None, "replay"):
        update = update_of(lm, *stored(lm, second))
        if remedy == "replay":
            again = replayed(update_of(lm, *stored(lm, first)), SHARE, draw_seed(SEED, order, 1, first))
            assert 0 < len(again) < len(update_of(lm, *stored(lm, first)).sequences)
            update = replace(update, sequences=(*update.sequences, *again))
        learner, both = lm, on_top_of(one, update, second)
    elif remedy == "average":
        learner, both = with_mean_of(one, other), None
    elif remedy in MERGES:
        # In the order of the passages, with a seed of those that are learned.
        learner, both = lm, MERGES[remedy]([apart(lm, 0), apart(lm, 1)], draw_seed(SEED, 0, 1))
    else:  # each question goes to the adapter of its own passage, which its topic names
        return said | {
            (1, 0): answers(lm, first, one),
            (2, 0): answers(lm, first, one),
            (2, 1): answers(lm, second, other),
        }
    said[1, 0] = answers(lm, first, one)
    said[2, 0], said[2, 1] = answers(learner, first, both), answers(learner, second, both)
    return said


@pytest.mark.parametrize("remedy", [None, *REMEDIES])
def test_the_matrix_of_two_passages_by_hand(lm, chained, remedy):
    rewards = np.full((2, 3, 2), np.nan)
    results = {(one.repeat, one.edit, one.example): one for one in trials_of(chained, remedy)}
    for order, places in enumerate(ORDERS):
        assert [
            next(one.example for one in trials_of(chained, remedy) if (one.repeat, one.edit) == (order, step))
            for step in (0, 1)
        ] == places
        for (row, column), texts in said_by_hand(lm, remedy, order).items():
            (verdicts,) = lm.domain.grade([EXAMPLES[places[column]]], [texts])
            rewards[order, row, column] = np.mean(verdicts)
            if row:
                assert results[order, row - 1, places[column]].answers == texts
    matrix = matrices(chained)[SELF_EDITS if remedy is None else f"{SELF_EDITS}, {remedy}"]
    assert matrix.num_orders == 2
    np.testing.assert_allclose(matrix.values, rewards)


def test_remedies_differ(chained):
    said = [[one.answers for one in trials_of(chained, remedy)] for remedy in (None, *REMEDIES)]
    assert all(one != other for place, one in enumerate(said) for other in said[place + 1 :])


def test_what_a_matrix_comes_to():
    nan = np.nan
    values = [
        [[0.2, 0.4, 0.0, 0.2], [1.0, nan, nan, nan], [0.8, 0.8, nan, nan], [0.5, 0.5, 1.0, nan], [0.5, 0.6, 0.3, 0.6]],
        [[0.0, 0.0, 0.0, 0.0], [0.0, nan, nan, nan], [0.0, 0.0, nan, nan], [0.0, 0.5, 0.0, nan], [1.0, 0.0, 0.5, 0.5]],
    ]
    matrix = ContinualMatrix(np.array(values))
    assert matrix.untouched == pytest.approx([0.2, 0.0])
    assert matrix.when_learned == pytest.approx([(1.0 + 0.8 + 1.0 + 0.6) / 4, 0.5 / 4])
    assert matrix.at_the_end == pytest.approx([0.5, 0.5])
    # Of the first three: 1.4 of 2.8 in the first order; nothing that could be kept in the second.
    assert matrix.num_first == 3
    assert matrix.kept[0] == pytest.approx(0.5) and np.isnan(matrix.kept[1])
    assert matrix.mean[4] == pytest.approx([0.75, 0.3, 0.4, 0.55]) and matrix.std[4][0] == pytest.approx(0.25)
    table = continual_table({"a": matrix, "b": ContinualMatrix(np.array(values[1:]))})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert rows[0][-1] == "kept of the first 3"
    assert rows[2] == ["a", "10.0 ± 10.0", "48.8 ± 36.2", "50.0 ± 0.0", "50.0"]
    assert rows[3] == ["b", "0.0", "12.5", "50.0", "–"]


def test_what_the_chains_come_to_is_evaluated(chained):
    for remedy in (None, *REMEDIES):
        folder = chained if remedy is None else chained / "conditions" / f"self-edits-{remedy}"
        found, results = scored(folder), trials_of(chained, remedy)
        for place in (0, 1):
            repeats = found[SELF_EDITS, place, 0].repeats
            last = [one for one in results if (one.edit, one.example) == (1, place)]
            assert [one["answers"] for one in repeats] == [one.answers for one in last] and len(repeats) == 2
        tokens = {(one.repeat, one.edit): one.tokens for one in results}
        assert len(tokens) == 4 and min(tokens.values()) > 0
        assert found[SELF_EDITS, 0, 0].tokens == sum(tokens.values())
        assert not (folder / "evaluation" / "chains").exists() and not (folder / "evaluation" / "apart").exists()


def test_replay_trains_on_a_share_of_what_was_learned(lm, tmp_path, chained):
    continual(lm, EXAMPLES, tmp_path, seed=SEED, remedies=["replay"], replay_share=1, **OPTIONS)
    tokens = {(one.example, one.edit): one.tokens for one in trials_of(tmp_path, "replay")}
    plain = {(one.example, one.edit): one.tokens for one in trials_of(tmp_path)}
    assert tokens[0, 0] == plain[0, 0] and tokens[1, 1] == plain[0, 0] + plain[1, 1]
    half = {(one.example, one.edit): one.tokens for one in trials_of(chained, "replay") if one.repeat == 0}
    assert plain[1, 1] < half[1, 1] < tokens[1, 1]


@pytest.mark.parametrize("number", [3, 6])
def test_a_continual_run_goes_on_in_the_middle(lm, chained, tmp_path, monkeypatch, number):
    """With the adapters that are on the disk, and where those are gone with some that are trained again."""
    call = lambda: continual(lm, EXAMPLES, tmp_path, num_orders=2, seed=SEED, **OPTIONS)  # noqa: E731
    interrupted_after(number, monkeypatch, call)
    chains = tmp_path / "evaluation" / "chains"
    # After the bank without adapters two banks of two chains each, then four of one whose ranks have doubled.
    assert len(list(chains.iterdir())) == {3: 4, 6: 7}[number]
    if number == 6:
        shutil.rmtree(chains)
    call()
    assert scored(tmp_path) == scored(chained)


@pytest.mark.parametrize("remedy", ["routed", "ties", "dare_linear"])
def test_a_remedy_goes_on_in_the_middle(lm, chained, tmp_path, monkeypatch, remedy):
    continual(lm, EXAMPLES, tmp_path, num_orders=2, seed=SEED, **OPTIONS)
    options = {"num_orders": 2, "seed": SEED, "remedies": [remedy], **OPTIONS}
    call = lambda: continual(lm, EXAMPLES, tmp_path, **options)  # noqa: E731
    interrupted_after(2, monkeypatch, call)
    own = tmp_path / "conditions" / f"self-edits-{remedy}"
    assert len(list((own / "evaluation" / "apart").iterdir())) == 2
    shutil.rmtree(own / "evaluation" / "apart" / "example_0001")
    trained, adapt = [], SelfAdaptingLM.adapt
    monkeypatch.setattr(SelfAdaptingLM, "adapt", lambda *args, **options: trained.append(1) or adapt(*args, **options))
    call()
    assert len(trained) == 1  # though three steps ask with it
    assert scored(own) == scored(chained / "conditions" / f"self-edits-{remedy}")


@pytest.mark.parametrize("carries_policy", [False, True])
def test_an_adapter_that_is_not_on_the_disk_is_trained_once_more_and_kept(tmp_path, carries_policy):
    lm = tiny_lm(tiny_policy_model()) if carries_policy else tiny_lm()
    trained = []

    def train():
        trained.append(lm.adapt(update_of(lm, *stored(lm, 0)), seed=1))
        return trained[-1]

    folder = tmp_path / "kept"
    folder.mkdir()  # as it is where another process is about to fill it
    first, second = (kept_or_trained(lm, folder, train) for _ in range(2))
    assert len(trained) == 1 and first is trained[0] and second is not first
    assert torch.equal(first.weights, second.weights)
    assert answers(lm, 0, second) == answers(lm, 0, first) != answers(lm, 0)
    assert kept_or_trained(lm, tmp_path / "none", lambda: None) is None and not (tmp_path / "none").exists()


def test_the_matrix_as_files(chained):
    json_file, _, picture = save_continual(chained)
    conditions = json.loads(json_file.read_text())["conditions"]
    record, found = conditions[SELF_EDITS], matrices(chained)
    assert set(conditions) == {SELF_EDITS, PASSAGE_ONLY, *(f"{SELF_EDITS}, {remedy}" for remedy in REMEDIES)}
    expected = np.nan_to_num(found[SELF_EDITS].mean).round(4).tolist()
    assert record["mean_over_sequences"] == expected and record["mean_over_sequences"][1][1] == 0
    assert (record["n_sequences"], record["n_datapoints"], record["n_first"]) == (2, 2, 1)
    kept = [None if np.isnan(share) else round(share, 4) for share in found[SELF_EDITS].kept]
    assert record["kept"] == kept
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_orders": 0}, "num_orders=0 must be"),
        ({"num_generations": 0}, "num_generations=0 must be"),
        (
            {"remedies": ["sleep"]},
            "remedies: 'sleep' is none of 'replay', 'routed', 'average', 'ties', 'dare_linear', 'dare_ties'",
        ),
        ({"replay_share": 0}, "replay_share=0 must be above 0 and at most 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(lm, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        continual(lm, EXAMPLES, tmp_path / "out", **{**OPTIONS, **options})
    assert not (tmp_path / "out").exists()


def test_a_model_on_which_nothing_can_be_stacked_is_refused(lm, tmp_path):
    with pytest.raises(ValueError, match="The model carries a policy, so that no adapter can be trained on top"):
        continual(tiny_lm(tiny_policy_model()), EXAMPLES, tmp_path / "out", **OPTIONS)
    with pytest.raises(ValueError, match="The model has a skill vector added to its adapters"):
        continual(with_skill(lm, apart(lm, 0)), EXAMPLES, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_domain_that_cannot_route_is_told_so(lm, tmp_path):
    class Unrouted(Domain):
        def routes(self, examples):
            return None

    with pytest.raises(ValueError, match="Unrouted.routes[(][)] cannot tell what a question is about"):
        continual(
            lm.with_domain(Unrouted("rewrite", grader=lm.domain.grader)),
            EXAMPLES,
            tmp_path,
            remedies=["routed"],
            **OPTIONS,
        )
    assert not list(tmp_path.rglob("*.jsonl"))  # nothing is done before
