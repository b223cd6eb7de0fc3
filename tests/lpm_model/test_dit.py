"""The transformer: token order, independence of rows, the reach of each condition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lpm_model.attention import rope3d, rotate
from lpm_model.blocks import RMSNorm
from lpm_model.config import AudioConfig, ModelConfig
from lpm_model.dit import Conditions, DiffusionTransformer, timestep_embedding
from tests.lpm_model.tiny import MODEL, conditions, normal, randomised, transformer

LATENTS, SIGMA = normal(2, 16, 3, 4, 4, seed=9), torch.tensor([[0.0, 0.4, 0.7], [0.0, 0.9, 0.2]])


def run(dit: DiffusionTransformer, given: Conditions, latents: Tensor = LATENTS, sigma: Tensor = SIGMA) -> Tensor:
    out: Tensor = dit(latents, sigma, given)
    return out


def test_initial_output_is_zero() -> None:
    velocity = replace(MODEL, predicts="velocity")
    assert torch.equal(run(DiffusionTransformer(velocity), conditions(3, 2)), torch.zeros_like(LATENTS))


def test_clean_prediction_gives_velocities() -> None:
    """v = (x - clean) / sigma for the same weights: one Euler step to 0 ends at the prediction."""
    clean = transformer(MODEL)
    direct = DiffusionTransformer(replace(MODEL, predicts="velocity"))
    direct.load_state_dict(clean.state_dict())
    sigma = torch.full((2, 3), 0.3)
    got = clean(LATENTS, sigma, conditions(3, 2))
    assert torch.allclose(LATENTS - 0.3 * got, direct(LATENTS, sigma, conditions(3, 2)), atol=1e-5)


def test_patchify_and_unpatchify_keep_cell_order() -> None:
    """With identity weights around no blocks the head returns the normed patch, each value at its own place."""
    config = ModelConfig(
        width=64, layers=0, heads=2, audio_width=0, time_width=32, residual_gain=0.0, predicts="velocity"
    )
    dit = DiffusionTransformer(config)
    with torch.no_grad():
        for layer in (dit.patch, dit.head):
            layer.weight.copy_(torch.eye(64))
            layer.bias.zero_()
        for layer in (dit.time[0], dit.time[2], dit.head_modulation):
            for parameter in layer.parameters() if isinstance(layer, torch.nn.Module) else [layer]:
                parameter.zero_()
        out = dit(LATENTS, SIGMA, Conditions())
    for row, frame, y, x in ((0, 0, 0, 0), (1, 2, 2, 0), (0, 1, 0, 2)):
        block, got = LATENTS[row, :, frame, y : y + 2, x : x + 2], out[row, :, frame, y : y + 2, x : x + 2]
        assert torch.allclose(got, (block - block.mean()) / block.std(correction=0), atol=1e-4)


def test_tokens_are_ordered_by_frame_row_column(dit: DiffusionTransformer) -> None:
    tokens = dit.tokens(LATENTS).unflatten(1, (3, 2, 2))
    alone = dit.tokens(LATENTS[:, :, 1:2, 2:, :2])
    assert torch.allclose(tokens[:, 1, 1, 0], alone[:, 0], atol=1e-6)


def test_batch_rows_are_independent(dit: DiffusionTransformer) -> None:
    given = conditions(3, 2)
    both = run(dit, given)
    for row in range(2):
        one = run(dit, given.map(lambda v, r=row: v[r : r + 1]), LATENTS[row : row + 1], SIGMA[row : row + 1])
        assert torch.allclose(both[row], one[0], atol=1e-4)  # of values up to 100


def test_untrained_audio_branch_adds_nothing() -> None:
    """Values of the audio branch start at zero: audio cannot change the output yet."""
    dit = transformer()
    given = conditions(3, 2)
    assert not torch.allclose(run(dit, given), run(dit, given.without("speak", "listen")), atol=1e-4)
    with torch.no_grad():
        for block in dit.blocks:
            block.cross.audio_value.weight.zero_()
            block.cross.audio_value.bias.zero_()
    assert torch.allclose(run(dit, given), run(dit, given.without("speak", "listen")), atol=1e-6)
    fresh = DiffusionTransformer(MODEL).blocks[0].cross
    assert not any(parameter.any() for parameter in fresh.audio_value.parameters())


@pytest.mark.parametrize(("role", "layers"), [("speak", 1), ("listen", 1), ("speak", 2), ("listen", 2)])
def test_speak_reaches_even_blocks_and_listen_odd_blocks(role: str, layers: int) -> None:
    dit = transformer(replace(MODEL, layers=layers))
    given = conditions(3, 2)
    other = replace(given, **{role: normal(*getattr(given, role).shape, seed=77)})
    changed_output = not torch.allclose(run(dit, given), run(dit, other), atol=1e-4)
    assert changed_output == (role == "speak" or layers == 2)


def test_audio_attention_covers_exactly_one_window() -> None:
    """Without self-attention nothing else carries audio from one latent frame to another."""
    dit = transformer()
    with torch.no_grad():
        for block in dit.blocks:
            block.attention.out.weight.zero_()
    given = conditions(4, 1)
    latents, sigma = normal(1, 16, 4, 4, 4), torch.full((1, 4), 0.5)
    before = run(dit, given, latents, sigma)
    for role, window in (("speak", 2), ("listen", 4)):
        changed = getattr(given, role).clone()
        changed[:, MODEL.context_latents + 1] += 1
        after = run(dit, replace(given, **{role: changed}), latents, sigma)
        touched = [not torch.equal(before[:, :, f], after[:, :, f]) for f in range(4)]
        assert touched == [1 <= f < 1 + window for f in range(4)]


def test_timestep_is_per_latent_frame() -> None:
    dit = transformer()
    with torch.no_grad():
        for block in dit.blocks:
            block.attention.out.weight.zero_()
    other = SIGMA.clone()
    other[0, 1] = 0.99
    before, after = run(dit, conditions(3, 2)), run(dit, conditions(3, 2), sigma=other)
    changed = (before != after).flatten(3).any(-1).any(1)
    assert changed.tolist() == [[False, True, False], [False, False, False]]


def test_reference_order_does_not_matter() -> None:
    """The output depends on their positions, not on their order."""
    dit, given = transformer(), conditions(3, 2)
    assert given.references is not None
    assert given.reference_positions is not None
    swapped = replace(given, references=given.references.flip(1), reference_positions=given.reference_positions.flip(0))
    wrong = replace(given, references=given.references.flip(1))
    assert torch.allclose(run(dit, given), run(dit, swapped), atol=1e-5)
    assert not torch.allclose(run(dit, given), run(dit, wrong), atol=1e-4)
    assert not torch.allclose(run(dit, given), run(dit, given.without("references", "reference_positions")), atol=1e-4)


@pytest.mark.parametrize("name", ["text", "speak", "listen"])
def test_learned_null_replaces_absent_branch(name: str) -> None:
    dit, given = transformer(), conditions(3, 2)
    before, absent = run(dit, given), run(dit, given.without(name))
    null = getattr(dit, f"null_{name}")
    with torch.no_grad():
        null.add_(1.0)
    assert torch.equal(run(dit, given), before)
    assert not torch.allclose(run(dit, given.without(name)), absent, atol=1e-4)


def test_nulls_receive_gradients() -> None:
    dit = randomised(DiffusionTransformer(MODEL)).requires_grad_(True)
    run(dit, Conditions()).square().mean().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in (dit.null_text, dit.null_speak, dit.null_listen))


def test_audio_width_0_removes_audio_branches() -> None:
    dit = DiffusionTransformer(replace(MODEL, audio_width=0))
    assert not [name for name, _ in dit.named_parameters() if "audio" in name or "speak" in name or "listen" in name]
    assert run(dit, conditions(3, 2)).shape == LATENTS.shape


def test_audio_branch_adds_three_projections_per_block() -> None:
    """Key, value and output; the query is shared with text (paper section 3.1 counts the same)."""
    config = replace(MODEL, width=64, heads=2, audio=AudioConfig(listen_window_latents=6))
    for block in DiffusionTransformer(config).blocks:
        audio = {name: p.numel() for name, p in block.cross.named_parameters() if "audio" in name}
        assert audio.pop("audio_slot") == 4 * block.cross.window * 64
        assert sum(audio.values()) == 3 * 64**2 + 2 * 64


def test_timestep_embedding_starts_with_cosines() -> None:
    got = timestep_embedding(torch.tensor([0.002]), 4)
    expected = torch.tensor([2.0, 0.02])
    assert torch.allclose(got[0], torch.cat([expected.cos(), expected.sin()]), atol=1e-6)
    assert torch.equal(timestep_embedding(torch.zeros(1), 4), torch.tensor([[1.0, 1, 0, 0]]))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_rms_norm_without_gradients_equals_the_one_with(dtype: torch.dtype, atol: float) -> None:
    norm = randomised(RMSNorm(48, 1e-6)).to(dtype)
    x = (5 * normal(2, 7, 96, seed=3)).to(dtype)[..., :48]
    x[0, 0] = 0
    with torch.no_grad():
        alone = norm(x)
    assert alone.dtype == dtype
    assert torch.allclose(alone, norm(x), atol=atol)


def test_compiled_rotate_equals_eager_rotate() -> None:
    x, rotation = normal(2, 8, 3, 32, seed=4), rope3d(torch.tensor([2, 5]), 2, 2, (12, 10, 10))
    compiled = torch.compile(rotate, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x, rotation), rotate(x, rotation), atol=1e-6)
