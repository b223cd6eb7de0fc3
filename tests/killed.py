"""Ends a training in the middle, as if its process had been killed."""

import pytest


class Killed(Exception):
    """The run ends here, as if its process had been killed."""


def kill_after(monkeypatch: pytest.MonkeyPatch, module: type, steps: int) -> None:
    plain, done = module.training_step, [0]  # type: ignore[attr-defined]

    def training_step(self: object, *arguments: object) -> object:
        done[0] += 1
        if done[0] > steps:
            raise Killed
        return plain(self, *arguments)

    monkeypatch.setattr(module, "training_step", training_step)
