"""Over families: the loss without logits is the loss of the logits, with all gradients; and where it is not, it is not used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import transformers

from lmkit.batch import IGNORE
from lmkit.fast import token_loss
from lmkit.fast.token_loss import TokenLoss
from lmkit.heads import unwrap

FUSED = [
    *(
        ("mlm", name)
        for name in ("bert", "roberta", "modernbert", "distilbert", "deberta-v2", "electra")
    ),
    *(("clm", name) for name in ("gpt2", "llama", "qwen3", "granite", "cohere")),
    *(("denoise", name) for name in ("t5", "bart")),
    *(("translation", name) for name in ("t5", "marian", "bart", "mbart")),
]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """(loss, gradients by name) without logits and with, in training mode."""

    def find(task: Any, model: Any, batch: Any, *, fused: bool = True) -> tuple[Any, Any]:
        ways = []
        for way in (TokenLoss().applied(model), nullcontext()):
            with way, counting() as logits:
                model.train().zero_grad()
                loss = task.loss(model, batch)
                (loss / batch.items).backward()
                ways.append(
                    (
                        loss.detach(),
                        {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
                    )
                )
                assert bool(logits) is (not fused or bool(len(ways) - 1))
        return ways[0], ways[1]

    @contextmanager
    def counting() -> Iterator[list[int]]:
        """The times that torch's cross-entropy, which takes logits, is called."""
        calls: list[int] = []
        real = torch.nn.functional.cross_entropy

        def counted(*arguments: Any, **options: Any) -> torch.Tensor:
            calls.append(1)
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "cross_entropy", counted)
            yield calls

    return find


def batch_of(tiny: Any, recipe: Any, number: int = 3) -> tuple[Any, Any]:
    prepared = tiny.prepared(recipe)
    return prepared.task, prepared.task.collate(
        [prepared.encoded["train"].example(i) for i in range(number)]
    )


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in one[1].values())


@pytest.mark.parametrize(("task", "architecture"), FUSED)
@pytest.mark.parametrize("way", ["all weights", "lora", "checkpointing", "smoothing"])
def test_loss_and_gradients_are_those_of_the_logits(
    tiny: Any, losses: Any, task: str, architecture: str, way: str
) -> None:
    sections: dict[str, Any] = {
        "lora": {"lora": {"rank": 4, "dropout": 0.0}},
        "checkpointing": {"hardware": {"gradient_checkpointing": True}},
        "smoothing": {"train": {"label_smoothing": 0.1}},
    }.get(way, {})
    base = tiny.base(task, architecture) if way == "lora" else None
    recipe = tiny.recipe(task, architecture, base=base, **sections)
    model = tiny.model(recipe)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.normal_()  # as a trained Marian has it
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(
                    std=0.1
                )  # one half of an adapter begins at zero; steep models differ by rounding
    learned, batch = batch_of(tiny, recipe)
    assert (batch.labels == IGNORE).any()
    assert_same(*losses(learned, model, batch))


@pytest.mark.parametrize(
    ("task", "architecture"),
    [("mlm", "bert"), ("clm", "llama"), ("denoise", "t5"), ("translation", "marian")],
)
def test_evaluation_has_the_loss_of_the_logits(tiny: Any, task: str, architecture: str) -> None:
    recipe = tiny.recipe(task, architecture, train={"label_smoothing": 0.1})
    model = tiny.model(recipe)
    learned, batch = batch_of(tiny, recipe)
    with torch.inference_mode():
        with TokenLoss().applied(model):
            without = learned.loss(model, batch)
        torch.testing.assert_close(without, learned.loss(model, batch), atol=1e-5, rtol=1e-5)
    with TokenLoss().applied(model.train()):
        learned.loss(model, batch).backward()  # the trial was made in inference mode


@pytest.mark.parametrize(
    ("task", "architecture"),
    [("mlm", "bert"), ("clm", "llama"), ("denoise", "t5"), ("translation", "marian")],
)
def test_a_batch_without_a_label_that_counts_has_no_loss(
    tiny: Any, task: str, architecture: str
) -> None:
    recipe = tiny.recipe(task, architecture)
    model = tiny.model(recipe)
    learned, batch = batch_of(tiny, recipe)
    inputs = learned.inputs(model, batch)
    loss = token_loss.token_loss(
        model.train(), inputs, torch.full_like(batch.labels, IGNORE), label_smoothing=0.0
    )
    assert loss is not None
    assert loss.item() == 0
    loss.backward()
    assert all(
        parameter.grad is None or not parameter.grad.any() for parameter in model.parameters()
    )


def test_a_soft_cap_keeps_the_plain_way_also_where_logits_are_too_small_to_show_it(
    tiny: Any, losses: Any
) -> None:
    recipe = tiny.recipe("clm", "gemma2")
    model = tiny.model(recipe)
    assert model.config.final_logit_softcapping
    task, batch = batch_of(tiny, recipe)
    assert_same(*losses(task, model, batch, fused=False))


def test_what_is_learned_after_the_projection_keeps_the_plain_way(tiny: Any, losses: Any) -> None:
    recipe = tiny.recipe("translation", "marian")
    model = tiny.model(recipe)
    learned = torch.nn.Parameter(torch.randn_like(model.final_logits_bias))
    del model.final_logits_bias
    model.final_logits_bias = learned
    task, batch = batch_of(tiny, recipe)
    one, other = losses(task, model, batch, fused=False)
    assert_same(one, other)
    assert other[1]["final_logits_bias"].any()


def test_an_adapter_on_the_head_keeps_the_plain_way(tiny: Any, losses: Any) -> None:
    from peft import LoraConfig, get_peft_model

    recipe = tiny.recipe("clm", "llama", model={"config": {"tie_word_embeddings": False}})
    task, batch = batch_of(tiny, recipe)
    model = tiny.model(recipe)
    assert TokenLoss().available(model, model.device) is None  # tried, and found exact
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    )
    one, other = losses(task, adapted, batch, fused=False)
    assert_same(one, other)
    assert any("lm_head.lora" in name for name in one[1])


def test_the_head_is_tried_once_and_left_as_it_was(tiny: Any, monkeypatch: Any) -> None:
    recipe = tiny.recipe("clm", "llama")
    task, batch = batch_of(tiny, recipe)
    model = tiny.model(recipe)
    trials = []
    real = token_loss._trial
    monkeypatch.setattr(token_loss, "_trial", lambda *given: (trials.append(1), real(*given))[1])
    with TokenLoss().applied(model):
        for _ in range(3):
            task.loss(model, batch)
    head = unwrap(model).get_output_embeddings()
    assert (len(trials), "forward" in vars(head)) == (1, False)
    assert model(**task.inputs(model, batch)).logits.shape[-1] == len(head.weight)


def test_under_autocast_the_products_alone_are_rounded(tiny: Any, losses: Any) -> None:
    """The same loss as the plain way to bf16's precision, and the trial is not misled by it."""
    recipe = tiny.recipe("clm", "llama")
    task, batch = batch_of(tiny, recipe)
    with torch.autocast("cpu", torch.bfloat16):
        one, other = losses(task, tiny.model(recipe), batch)
    torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)
    assert not torch.equal(one[0], task.loss(tiny.model(recipe), batch).detach())


def test_a_new_head_under_an_adapter_needs_no_logits_either(
    tiny: Any, losses: Any, tmp_path: Any
) -> None:
    base = tiny.base("clm", "llama", model={"config": {"tie_word_embeddings": False}})
    transformers.AutoModel.from_pretrained(base).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    recipe = tiny.recipe("clm", base=str(tmp_path), lora={"rank": 4, "dropout": 0.0})
    task, batch = batch_of(tiny, recipe)
    model = tiny.model(recipe)
    assert list(model.peft_config["default"].modules_to_save) == ["lm_head"]
    one, other = losses(task, model, batch)
    assert_same(one, other)
