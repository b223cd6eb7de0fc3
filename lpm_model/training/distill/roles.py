"""Who plays which role in a distillation: teacher, student, refiner, critic.

Each has weights of its own, or, with LoRA, each is an adapter on one frozen base, which without any is the teacher.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lpm_model.config import Lora
from lpm_model.dit import DiffusionTransformer
from lpm_model.lora import activate, active, add_adapter, difference, merged
from lpm_model.online import OnlineModel

Role = Literal["teacher", "student", "refiner", "critic"]
LEARNERS: tuple[Role, ...] = ("student", "refiner", "critic")
"""All but the teacher."""


class ModelRoles:
    """The networks of a distillation.

    Args:
        online: whose backbone and refiner hold the teacher's weights.
        lora: rank 0 gives each role weights of its own.
    """

    def __init__(self, online: OnlineModel, lora: Lora) -> None:
        self.online, self.lora = online, lora
        online.requires_grad_(False).eval()
        if lora.rank:
            base = online.backbone
            for role in LEARNERS:
                if role != "refiner" or online.refiner is not None:
                    add_adapter(base, role, lora)
            if online.refiner is not None:
                online.refiner = base
            self.networks: dict[Role, DiffusionTransformer] = dict.fromkeys(("teacher", *LEARNERS), base)
            activate(base, "student")
            return
        self.networks = {"teacher": _copy(online.backbone), "student": online.backbone}
        if online.refiner is not None:
            self.networks["refiner"] = online.refiner

    @property
    def device(self) -> torch.device:
        """Where they all are."""
        return self.online.device

    @contextmanager
    def playing(self, role: Role) -> Iterator[DiffusionTransformer]:
        """The network of a role, with its adapter active for a while."""
        if not self.lora.rank:
            yield self.networks[role]
            return
        with active(self.networks[role], None if role == "teacher" else role):
            yield self.networks[role]

    def weights(self, role: Role) -> dict[str, nn.Parameter]:
        """What a role learns, by name."""
        named = dict(self.networks[role].named_parameters())
        return {name: w for name, w in named.items() if f".adapters.{role}." in name} if self.lora.rank else named

    def learn(self, *roles: Role) -> None:
        """Let these roles learn and no other."""
        for role in self.networks:
            for weight in self.weights(role).values():
                weight.requires_grad = False
        for role in roles:
            for weight in self.weights(role).values():
                weight.requires_grad = True

    def start(self, role: Role, other: Role) -> None:
        """Give a role another's weights; a critic that has not been needed yet is made."""
        if role not in self.networks:
            self.networks[role] = _copy(self.networks[other])
            return
        with torch.no_grad():
            own, given = self.weights(role), self.weights(other)
            for (name, weight), like in zip(own.items(), given.values() or own.values(), strict=True):
                if given:
                    weight.copy_(like)
                elif name.endswith(".up"):  # an adapter of the teacher's weights: none
                    weight.zero_()

    def state(self, role: Role) -> dict[str, Tensor]:
        """The weights of a role as those of a plain transformer; of an adapted refiner, its update of the student's."""
        weights = dict(self.networks[role].state_dict())
        if not self.lora.rank:
            return weights
        if role == "refiner":
            return difference(weights, role, "student", self.lora)
        return merged(weights, role, self.lora)


def _copy(network: DiffusionTransformer) -> DiffusionTransformer:
    """Another one with the same weights."""
    with torch.device("meta"):
        other = DiffusionTransformer(network.config, network.execution)
    other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()}, assign=True)
    return other.requires_grad_(False).eval()
