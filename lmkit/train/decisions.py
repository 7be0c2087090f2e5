"""Decisions that a run takes by trying, and keeps: a resumed run computes with what it had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lmkit.recipe.schema import Hardware

MICRO_BATCH = "hardware.micro_batch_tokens"
COMPILE = "hardware.compile"
ATTENTION = "hardware.attention"
KERNELS = "hardware.kernels"

SDPA = "SDPA"  # the plain attention
TORCH = "PyTorch's"  # the plain kernels

# state.json of lmkit 0.1: its name of a decision -> the key now, and its name of what was chosen
_OF_0_1 = {
    "micro_batch": (MICRO_BATCH, "tokens"),
    "compiled": (COMPILE, "on"),
    "attention": (ATTENTION, "on"),
    "kernels": (KERNELS, "on"),
}
_MADE_FOR = ("device", "processes", "precision")


@dataclass(frozen=True)
class Decision:
    """What was chosen where a recipe leaves a choice.

    Args:
        key: of the recipe.
        asked: the recipe's value.
        chosen: what the run computes with.
        why: for the user.
        made_for: device, processes, precision. On others it is decided anew.
        proof: what was shown or measured, and what it holds for.
    """

    key: str
    asked: Any
    chosen: Any
    why: str = ""
    made_for: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)

    def answers(self, asked: Any, made_for: Mapping[str, Any]) -> bool:
        """Return whether the decision was made for the same wish in the same place."""
        return bool(self.asked == asked and self.made_for == made_for)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def for_manifest(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.chosen, "why": self.why, "proof": dict(self.proof)}


def decisions_of(state: Mapping[str, Any]) -> dict[str, Decision]:
    """Read the decisions of a checkpoint's state, also of one that lmkit 0.1 wrote."""
    if "decisions" in state:
        return by_key([Decision(**values) for values in state["decisions"]])
    stored = {name: state[name] for name in _OF_0_1 if state.get(name)}
    return by_key([_from_0_1(name, values) for name, values in stored.items()])


def plain_decisions(hardware: Hardware) -> list[Decision]:
    """Return the decisions of a run without anything that only makes it faster."""
    plain = (
        (ATTENTION, hardware.attention, SDPA),
        (KERNELS, hardware.kernels, TORCH),
        (COMPILE, hardware.compile, False),
    )
    return [Decision(key, asked, chosen, "hardware.fast is off") for key, asked, chosen in plain]


def by_key(decisions: Sequence[Decision]) -> dict[str, Decision]:
    return {decision.key: decision for decision in decisions}


def _from_0_1(name: str, values: Mapping[str, Any]) -> Decision:
    key, chosen = _OF_0_1[name]
    proof: dict[str, Any] = {}
    if name == "compiled":
        proof = {"tokens": values["tokens"]}
    elif name == "attention":
        proof = {"holds_for": values.get("proof", {})}
    elif name == "kernels":
        proof = {"holds_for": values.get("proof", {}), "ways": values.get("ways", {})}
    return Decision(
        key=key,
        asked=values["asked"],
        chosen=values[chosen],
        why=values.get("why", ""),
        made_for={name: values[name] for name in _MADE_FOR if name in values},
        proof=proof,
    )
