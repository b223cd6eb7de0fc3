"""Model roles of a distillation: teacher, student, refiner, critic.

Each role has its own weights or, with LoRA, its own adapter on one frozen base, which is the teacher without adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from lpm_model.config import Lora
from lpm_model.dit import DiffusionTransformer
from lpm_model.lora import activate_adapter, adapter_active, adapter_difference, add_adapter, merge_adapter
from lpm_model.online import OnlineModel

Role = Literal["teacher", "student", "refiner", "critic"]
TRAINABLE_ROLES: tuple[Role, ...] = ("student", "refiner", "critic")
"""All roles but the teacher."""


class ModelRoles:
    """The networks of a distillation, by role.

    Args:
        online: the model whose backbone and refiner hold the teacher's weights.
        lora: settings of the adapters; rank 0 gives each role its own weights.
    """

    def __init__(self, online: OnlineModel, lora: Lora) -> None:
        self.online, self.lora = online, lora
        online.requires_grad_(False).eval()
        if lora.rank:
            base = online.backbone
            for role in TRAINABLE_ROLES:
                if role != "refiner" or online.refiner is not None:
                    add_adapter(base, role, lora)
            if online.refiner is not None:
                online.refiner = base
            self.networks: dict[Role, DiffusionTransformer] = dict.fromkeys(("teacher", *TRAINABLE_ROLES), base)
            activate_adapter(base, "student")
            return
        self.networks = {"teacher": _copy(online.backbone), "student": online.backbone}
        if online.refiner is not None:
            self.networks["refiner"] = online.refiner

    @property
    def device(self) -> torch.device:
        """The device of all networks."""
        return self.online.device

    @contextmanager
    def activate(self, role: Role) -> Iterator[DiffusionTransformer]:
        """Activate the adapter of a role inside the context, and yield its network."""
        if not self.lora.rank:
            yield self.networks[role]
            return
        with adapter_active(self.networks[role], None if role == "teacher" else role):
            yield self.networks[role]

    def weights(self, role: Role) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of a role by name."""
        named = dict(self.networks[role].named_parameters())
        return {name: w for name, w in named.items() if f".adapters.{role}." in name} if self.lora.rank else named

    def set_trainable(self, *roles: Role) -> None:
        """Make the parameters of these roles trainable and freeze all others."""
        for role in self.networks:
            for weight in self.weights(role).values():
                weight.requires_grad = False
        for role in roles:
            for weight in self.weights(role).values():
                weight.requires_grad = True

    def initialize(self, role: Role, source: Role) -> None:
        """Copy the weights of another role into a role; a critic that does not exist yet is created."""
        if role not in self.networks:
            self.networks[role] = _copy(self.networks[source])
            return
        with torch.no_grad():
            own, given = self.weights(role), self.weights(source)
            for (name, weight), like in zip(own.items(), given.values() or own.values(), strict=True):
                if given:
                    weight.copy_(like)
                elif name.endswith(".up"):  # the teacher has no adapter: a zero update
                    weight.zero_()

    def state_dict(self, role: Role) -> dict[str, Tensor]:
        """Return the weights of a role as a plain transformer's; with LoRA, the refiner's as a delta to the student."""
        weights = dict(self.networks[role].state_dict())
        if not self.lora.rank:
            return weights
        if role == "refiner":
            return adapter_difference(weights, role, "student", self.lora)
        return merge_adapter(weights, role, self.lora)


def _copy(network: DiffusionTransformer) -> DiffusionTransformer:
    """Copy a network with its weights."""
    with torch.device("meta"):
        other = DiffusionTransformer(network.config, network.execution)
    other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()}, assign=True)
    return other.requires_grad_(False).eval()
