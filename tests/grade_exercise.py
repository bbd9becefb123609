"""Grades model.py beside this file: python -m pytest with the name of this file or of its folder.

Each test compares with a definition, with PyTorch, or with transformers' GPT-2, and says in its name which steps of the
handout it is about. A test that fails with NotImplementedError has come to a step that is still to be written.
"""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # what model.py imports may be beside it, or a folder higher
spec = importlib.util.spec_from_file_location("exercise_model", HERE / "model.py")
sys.modules["exercise_model"] = exercise = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exercise)
B, h, L, d, V = 2, 3, 7, 4, 11
C = h * d


def make(**changes):
    """A GPT with weights that are far from the small ones of the start."""
    torch.manual_seed(0)
    model = exercise.GPT(exercise.GPTConfig(V, max_seq_len=9, n_layer=2, n_head=h, n_embd=C, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def token_ids(length: int = L):
    return torch.randint(V, (B, length), generator=torch.Generator().manual_seed(1))


def later_positions():
    return torch.tensor([[j > i for j in range(L)] for i in range(L)])


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_step_3_2_to_3_6_attention_is_its_definition():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, h, L, d)
    out, weights = exercise.attention(q, k, v, later_positions())
    assert out.shape == (B, h, L, d) and weights.shape == (B, h, L, L)
    for i in range(L):
        scores = (q[:, :, i, None] * k[:, :, : i + 1]).sum(-1) / math.sqrt(d)  # (B, h, i + 1)
        expected = scores.exp() / scores.exp().sum(-1, keepdim=True)
        close(weights[:, :, i, : i + 1], expected)
        assert (weights[:, :, i, i + 1 :] == 0).all()
        close(out[:, :, i], sum(expected[:, :, j, None] * v[:, :, j] for j in range(i + 1)))


def test_step_3_2_to_3_6_attention_with_any_mask_is_pytorchs():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, B, h, L, d)
    mask = torch.rand(L, L) < 0.4
    mask.fill_diagonal_(False)
    out, weights = exercise.attention(q, k, v, mask)
    close(out, F.scaled_dot_product_attention(q, k, v, ~mask))
    close(weights.sum(-1), torch.ones(B, h, L))


def test_step_3_5_dropout_acts_on_the_attention_weights():
    """With values of 1, an output is the sum of what dropout has left of its weights, doubled."""
    torch.manual_seed(0)
    q, v = torch.zeros(B, h, 50, d), torch.ones(B, h, 50, d)
    out, _ = exercise.attention(q, q, v, torch.zeros(50, 50, dtype=torch.bool), 0.5)
    assert 0.9 < out.mean() < 1.1 and out[..., 0].std() > 0.05
    close(out, out[..., :1].expand_as(out))  # a weight is dropped for all channels, or for none


def test_step_1_to_5_multi_head_attention_is_pytorchs():
    ours, theirs = make().layers[0].attention, torch.nn.MultiheadAttention(C, h, batch_first=True)
    qkv = (ours.query, ours.key, ours.value)
    names = {f"in_proj_{kind}": torch.cat([getattr(linear, kind) for linear in qkv]) for kind in ("weight", "bias")}
    theirs.load_state_dict({**names, "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias})
    x, mask = torch.randn(B, L, C), later_positions()
    expected, expected_weights = theirs(x, x, x, attn_mask=mask, average_attn_weights=False)
    out, weights = ours(x, mask, need_weights=True)
    close(out, expected)
    close(weights, expected_weights)
    close(ours(x, mask)[0], expected)


def test_step_5_dropout_acts_on_the_output_in_training_only():
    layer, x = make(dropout=0.5).train().layers[0].attention, torch.randn(B, L, C)
    zeros = (layer(x, later_positions(), need_weights=True)[0] == 0).float().mean()
    assert 0.3 < zeros < 0.7, "half of the outputs of Step 5 are to be dropped"
    assert (layer.eval()(x, later_positions(), need_weights=True)[0] != 0).all()


def as_transformers(model):
    """The weights of a model in transformers' GPT-2, which stores matrices transposed."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    sizes = {"vocab_size": V, "n_positions": c.max_seq_len, "n_layer": c.n_layer, "n_head": h, "n_embd": C}
    sizes |= {"bos_token_id": None, "eos_token_id": None}
    other = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation="eager")).eval()
    wpe = torch.zeros(c.max_seq_len, C) if c.no_pos else model.position_embedding.weight
    state = {"wte.weight": model.token_embedding.weight, "wpe.weight": wpe}
    state |= {f"ln_f.{kind}": getattr(model.norm, kind) for kind in ("weight", "bias")}
    for i, layer in enumerate(model.layers):
        a, f = layer.attention, layer.feed_forward
        modules = {"ln_1": [layer.attention_norm], "attn.c_attn": [a.query, a.key, a.value], "attn.c_proj": [a.out]}
        modules |= {"ln_2": [layer.feed_forward_norm], "mlp.c_fc": [f.up], "mlp.c_proj": [f.down]}
        for name, parts in modules.items():
            for kind in ("weight", "bias"):  # t() transposes a matrix and leaves a vector
                state[f"h.{i}.{name}.{kind}"] = torch.cat([getattr(part, kind) for part in parts]).t()
    other.transformer.load_state_dict(state)
    return other


def check_against_transformers(model):
    other = as_transformers(model)
    for length in (1, L, 9):
        U = token_ids(length)
        expected = other(U, output_attentions=True)
        logits, attn_weights = model(U, need_weights=True)
        close(logits, expected.logits)
        assert len(attn_weights) == 2, "Step 5: one matrix of attention weights a layer"
        close(tuple(attn_weights), tuple(expected.attentions))
        fast, none = model(U)
        close(fast, expected.logits)
        assert len(none) == 0, "Step 5: no attention weights unless need_weights"


def test_gpt_step_1_to_6_is_gpt2():
    check_against_transformers(make())


def test_gpt_step_3_no_pos_is_gpt2_with_positions_of_zero():
    check_against_transformers(make(no_pos=True))


def test_gpt_step_3_dropout_acts_on_the_embeddings_in_training_only():
    """Without its layers, the model is Step 2 and 3 alone, and a dropped channel is 0."""
    model = make(dropout=0.5).train()
    model.layers, model.norm = torch.nn.ModuleList(), torch.nn.Identity()
    U = token_ids()
    assert 0.3 < (model.features(U)[0] == 0).float().mean() < 0.7
    expected = model.token_embedding.weight[U] + model.position_embedding.weight[:L]
    close(model.eval().features(U)[0], expected)


def test_gpt_step_4_no_position_sees_a_later_one():
    model, U = make(), token_ids()
    before, _ = model(U)
    for changed in range(1, L):
        after, _ = model((U + (torch.arange(L) == changed)) % V)
        close(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed], atol=1e-3), "a position sees itself"


def test_gpt_learns():
    """A model that is trained on one sentence comes to know it: the gradients reach the weights."""
    model, U = make().train(), token_ids(9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):
        logits, _ = model(U[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), U[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
