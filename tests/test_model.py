import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from model import GPT, GPTConfig
from songci.export import gpt2_config, gpt2_weights

SIZES = [
    GPTConfig(50, 16, n_layer=1, n_head=1, n_embd=8),
    GPTConfig(97, 24, n_layer=3, n_head=4, n_embd=32),
    GPTConfig(300, 64, n_layer=4, n_head=4, n_embd=128),
]
NO_POS, NO_RES = (dataclasses.replace(SIZES[1], **{flag: True}) for flag in ("no_pos", "no_res"))


def make(config: GPTConfig, seed: int = 0, scale: float = 2.5) -> GPT:
    """A model whose weights are far from the small ones of the start, so that nothing is hidden by near-zeros."""
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale).add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def token_ids(config: GPTConfig, batch: int = 2, length: int | None = None, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, length or config.max_seq_len), generator=generator)


def as_transformers(model: GPT) -> GPT2LMHeadModel:
    """Our weights laid into transformers' GPT-2, without the rows that the export adds for its special tokens."""
    sizes = gpt2_config(model) | {"vocab_size": model.config.vocab_size}
    other = GPT2LMHeadModel(GPT2Config.from_dict(sizes, attn_implementation="eager"))
    head = {"transformer.wte.weight": model.head.weight, "lm_head.weight": model.head.weight}
    other.load_state_dict(gpt2_weights(model) | head)
    return other.eval()


@pytest.mark.parametrize("config", [*SIZES, NO_POS])
def test_logits_and_attention_weights_equal_those_of_transformers_gpt2(config):
    model, U = make(config), token_ids(config)
    expected = as_transformers(model)(U, output_attentions=True)
    logits, attn_weights = model(U, need_weights=True)
    assert expected.logits.std() > 0.1 and len(attn_weights) == config.n_layer
    for ours, theirs in zip([logits, *attn_weights], [expected.logits, *expected.attentions], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert ("position_embedding.weight" in model.state_dict()) != config.no_pos


@pytest.mark.parametrize("config", SIZES)
def test_the_fast_path_equals_the_explicit_steps_in_values_and_gradients(config):
    model, U, results = make(config), token_ids(config), []
    for need_weights in (False, True):
        logits, attn_weights = model(U, need_weights=need_weights)
        assert len(attn_weights) == need_weights * config.n_layer
        loss = F.cross_entropy(logits.flatten(0, 1), U.flatten())
        results.append([logits, *torch.autograd.grad(loss, list(model.parameters()))])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_multi_head_attention_obeys_any_mask():
    layer, x = make(SIZES[1]).layers[0].attention, torch.randn(2, 6, SIZES[1].n_embd)
    mask = (torch.rand(6, 6) < 0.5).fill_diagonal_(False)
    out, weights = layer(x, mask, need_weights=True)
    fast, none = layer(x, mask)
    assert none is None and torch.equal(weights == 0, mask.expand_as(weights))
    torch.testing.assert_close(out, fast, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", [SIZES[1], NO_POS, NO_RES])
def test_a_token_never_sees_its_future(config):
    model, U = make(config), token_ids(config)
    before, _ = model(U)
    for changed in (1, 7, 20):
        after, _ = model((U + (torch.arange(U.size(1)) == changed)) % config.vocab_size)
        assert torch.equal(before[:, :changed], after[:, :changed])
        assert not torch.allclose(before[:, changed], after[:, changed])


def test_no_res_removes_both_residual_additions():
    for config in (SIZES[1], NO_RES):
        layer, x = make(config).layers[0], torch.randn(1, 5, config.n_embd)
        mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), diagonal=1)
        middle = layer.attention(layer.attention_norm(x), mask)[0] + (0 if config.no_res else x)
        last = layer.feed_forward(layer.feed_forward_norm(middle)) + (0 if config.no_res else middle)
        torch.testing.assert_close(layer(x, mask)[0], last)


@pytest.mark.parametrize("config", [*SIZES[1:], NO_POS, NO_RES])
def test_every_parameter_gets_a_gradient_at_the_start(config):
    torch.manual_seed(0)
    model, U = GPT(config), token_ids(config)
    logits, _ = model(U)
    F.cross_entropy(logits.flatten(0, 1), U.roll(-1, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        largest = parameter.grad.abs().max()
        # A bias of the keys adds the same to all the scores of a row: no effect
        assert largest < 1e-6 if name.endswith("key.bias") else largest > 1e-8, name


def test_dropout_acts_in_training_where_gpt2_drops(monkeypatch):
    """On the embeddings; in each layer on the attention weights, and on the outputs of attention and feed-forward."""
    model = make(dataclasses.replace(SIZES[1], dropout=0.3)).train()
    U, dropped, fused = token_ids(model.config), [], []
    dropout, attend = F.dropout, F.scaled_dot_product_attention

    def spy(x, p=0.5, training=True, inplace=False):
        if p and training:
            dropped.append((tuple(x.shape), p))
        return dropout(x, p, training, inplace)

    monkeypatch.setattr(F, "dropout", spy)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: fused.append(args[-1]) or attend(*args))
    as_transformers(model).train()(U)
    expected, dropped[:] = dropped[:], []
    model(U, need_weights=True)
    assert dropped == expected and len(expected) == 1 + 3 * model.config.n_layer
    model(U)
    assert fused == [0.3] * model.config.n_layer
    dropped.clear()
    model.eval()(U), model(U, need_weights=True)
    assert not dropped and set(fused[model.config.n_layer :]) == {0}


def test_the_weights_are_as_many_as_gpt2s_with_its_tied_head_and_begin_as_they_do():
    torch.manual_seed(0)
    model = GPT(SIZES[2])
    ours = as_transformers(model)
    theirs = GPT2LMHeadModel(ours.config)
    assert model.num_parameters() == theirs.num_parameters()
    for name, weight in ours.state_dict().items():
        other = theirs.state_dict()[name]
        assert weight.std().item() == pytest.approx(other.std().item(), rel=0.05), name
        assert weight.mean().item() == pytest.approx(other.mean().item(), abs=0.001), name


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="n_head 3 does not divide n_embd 8"):
        GPTConfig(10, n_head=3, n_embd=8)
