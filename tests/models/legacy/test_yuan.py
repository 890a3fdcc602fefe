"""Yuan 2's filter by its definition, in packed rows and behind a cache; its special tokens."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch.nn.functional import conv2d, pad

import luthier.models
from luthier.data.tokenizer import load_tokenizer
from luthier.generation.decode import generate
from luthier.generation.sampling import Decoding
from luthier.models.hub import fetch
from luthier.models.legacy.yuan_model import LocalizedFilter
from tests.models.legacy.cases import copy_of, expected, fixture, inputs


class Numbers:
    """Stands for a tokenizer."""

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return " ".join(map(str, ids))


def test_the_filter_is_two_causal_convolutions() -> None:
    torch.manual_seed(0)
    layer, states = LocalizedFilter(8), torch.randn(2, 7, 8)
    image = states.transpose(1, 2)[..., None]  # [B, H, T, 1]
    for conv in (layer.conv1, layer.conv2):
        image = conv2d(pad(image, (0, 0, 1, 0)), conv.weight, conv.bias)
    wanted = layer.output_layernorm(image[..., 0].transpose(1, 2) + states)
    assert torch.allclose(layer(states, 0, None, None), wanted, atol=1e-6)
    starts = torch.tensor([0, 3], dtype=torch.int32)
    apart = torch.cat([layer(states[:, :3], 0, None, None), layer(states[:, 3:], 0, None, None)], dim=1)
    assert torch.allclose(layer(states, 0, None, starts), apart, atol=1e-6)
    assert not torch.allclose(wanted, apart, atol=1e-2)


def test_decoding_with_a_cache_follows_the_logits(shared: Path) -> None:
    folder = fixture(shared, "yuan2")
    model = luthier.models.load(str(folder))
    prompts = [ids[0].tolist() for key, ids, _mask, _logits in inputs(expected(folder)) if key.startswith("single")] + [[7]]
    answers = generate(model, Numbers(), prompts, Decoding(max_new_tokens=6, temperature=0.0))
    with torch.no_grad():
        for prompt, answer in zip(prompts, answers, strict=True):
            text = list(prompt)
            for token in answer.tokens:
                assert int(model(torch.tensor([text])).logits[0, -1].argmax()) == token
                text.append(token)
        whole = model.generate(torch.tensor([prompts[1]]), max_new_tokens=6, do_sample=False, use_cache=True, eos_token_id=None)
    assert whole[0, len(prompts[1]) :].tolist() == list(answers[1].tokens)


def test_ends_of_documents_within_a_text_are_tokens_like_others(shared: Path) -> None:
    values = expected(fixture(shared, "yuan2"))
    with torch.no_grad():
        logits = luthier.models.load(str(fixture(shared, "yuan2")))(values["eod.input_ids"]).logits
    assert (logits - values["eod_off.logits"]).abs().max() <= 1e-4


def test_special_tokens_keep_the_id_of_their_piece_or_follow_the_pieces(shared: Path, tmp_path: Path) -> None:
    folder, model = copy_of(fixture(shared, "yuan2"), tmp_path / "Yuan2-2B"), io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a big dog ran far in"] * 50), model_writer=model, vocab_size=60,
        model_type="bpe", hard_vocab_limit=False, user_defined_symbols=["<eod>"], minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    said = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    pieces = SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = load_tokenizer(fetch(str(folder)))
    eod, after = pieces.piece_to_id("<eod>"), pieces.get_piece_size()
    assert (tokenizer.eos_token, tokenizer.eos_id, tokenizer.adds_bos) == ("<eod>", eod, False)
    found = tokenizer.encode("the cat<sep>a dog<eod>").ids.tolist()
    assert (found.count(after), found[-1]) == (1, eod)
    assert tokenizer.encode("<pad><FIM_MIDDLE>").ids.tolist() == [after + 1, after + 6]
