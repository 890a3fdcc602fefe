"""SentencePiece models on their own (`tokenizer.model`), encoded by the sentencepiece library itself.

Why not through transformers: given only a `.model` file it builds a BPE whose merges are ordered by id, not by score, and that puts
the dummy space elsewhere. With the Llama-2 model, one alpaca row in forty gets other ids than sentencepiece gives (runs of spaces),
and so other ids than the model was trained on.

`convert` writes the same tokenizer in the format of the `tokenizers` library, for those who load the result with AutoTokenizer:

- merges: every split of a piece into two pieces, ordered by the score of the whole (SentencePiece merges the best-scored pair first);
  equal scores, as those of the space runs, by the longer left half, which grows a run from its left as SentencePiece does;
- dummy space: a normaliser that puts `▁` in front of each stretch between special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.tokenizer_pieces import Encoded
from luthier.errors import UserError

SPACE = "▁"
UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


class SentencePieceEngine:
    """Encodes through sentencepiece. See `data.tokenizer_pieces.Engine`.

    Attributes:
        file: the model file.
        lengths: int32 [V], UTF-8 bytes of each piece; 0 where only the text can tell.
        prefix: the model puts a space in front of a text.
        proto: the parsed model file.
    """

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        self.file, content = file, file.read_bytes()
        self.proto: Any = sentencepiece_model_pb2.ModelProto()
        try:
            self.proto.ParseFromString(content)
            self._processor = SentencePieceProcessor(model_proto=content)
        except Exception as error:  # protobuf and sentencepiece share no base class for a broken file
            raise UserError(f"not a SentencePiece model ({error})", where=str(file)) from error
        rules = self.proto.normalizer_spec
        self.prefix = bool(rules.add_dummy_prefix) and not self.proto.trainer_spec.treat_whitespace_as_suffix
        self._verbatim = not (rules.precompiled_charsmap or rules.remove_extra_whitespaces) and rules.escape_whitespaces
        self.lengths = np.array([self._length(piece) for piece in self.proto.pieces], np.int32)
        self._bytes = np.array([piece.type == BYTE for piece in self.proto.pieces])

    def _length(self, piece: Any) -> int:
        """Bytes of text that a piece stands for; 0 where only the text can tell."""
        if not self._verbatim or piece.type in (UNKNOWN, CONTROL):
            return 0
        return 1 if piece.type == BYTE else len(piece.piece.replace(SPACE, " ").encode())

    @property
    def specials(self) -> dict[str, int]:
        """Control, user-defined and unknown pieces: text → id."""
        kinds = (CONTROL, USER_DEFINED, UNKNOWN)
        return {piece.piece: id_ for id_, piece in enumerate(self.proto.pieces) if piece.type in kinds}

    @property
    def controls(self) -> frozenset[str]:
        """Control pieces and the unknown one."""
        return frozenset(piece.piece for piece in self.proto.pieces if piece.type in (CONTROL, UNKNOWN))

    @property
    def roles(self) -> dict[str, str]:
        """Role → piece, for the roles that the model fills."""
        ids = {role: getattr(self._processor, f"{role}_id")() for role in ("bos", "eos", "pad", "unk")}
        return {f"{role}_token": self._processor.id_to_piece(id_) for role, id_ in ids.items() if id_ >= 0}

    def encode(self, texts: list[str], threads: int) -> list[NDArray[np.int32]]:
        """Ids of each text."""
        return self._processor.encode(texts, return_type="numpy", num_threads=threads)

    def aligned(self, text: str) -> Encoded:
        """Ids and sentencepiece's own offsets; a byte token gets the whole character that it is a part of."""
        found = self._processor.encode(text, return_type="offset_mapping")
        ids = np.array(found["ids"], np.int32)
        starts, ends = np.array(found["offsets"], np.int32).reshape(-1, 2).T
        return Encoded(ids, starts, np.where(self._bytes[ids] & (ends == starts), starts + 1, ends).astype(np.int32))

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; ids beyond the model have no text."""
        return self._processor.decode([id_ for id_ in ids if id_ < len(self.lengths)])

    def convert(self, specials: Mapping[str, int]) -> Any:
        """The same tokenizer as a `tokenizers.Tokenizer`."""
        from tokenizers import AddedToken, Tokenizer, decoders, normalizers

        tokenizer = Tokenizer(self._unigram() if self.proto.trainer_spec.model_type == UNIGRAM else self._bpe())
        tokenizer.normalizer = self._normalizer(normalizers)
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if self.prefix else []))
        controls, known = self.controls, len(self.lengths)
        for text, id_ in sorted(specials.items(), key=lambda item: item[1]):
            token = AddedToken(text, normalized=False, special=text in controls or id_ >= known)
            tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        return tokenizer

    def _normalizer(self, normalizers: Any) -> Any:
        rules, steps = self.proto.normalizer_spec, []
        if rules.precompiled_charsmap:
            steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
        if rules.remove_extra_whitespaces:
            from tokenizers import Regex

            steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.prefix:
            steps.append(normalizers.Prepend(SPACE))
        return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])

    def _unigram(self) -> Any:
        from tokenizers.models import Unigram

        pieces = [(piece.piece, piece.score) for piece in self.proto.pieces]
        return Unigram(pieces, unk_id=self.proto.trainer_spec.unk_id, byte_fallback=self.proto.trainer_spec.byte_fallback)

    def _bpe(self) -> Any:
        from tokenizers.models import BPE

        pieces = self.proto.pieces
        spec = self.proto.trainer_spec
        merges = _merges({piece.piece: piece.score for piece in pieces if piece.type == NORMAL})
        return BPE(
            vocab={piece.piece: id_ for id_, piece in enumerate(pieces)},
            merges=merges,
            unk_token=pieces[spec.unk_id].piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, in the order in which SentencePiece would merge them."""
    pairs = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    pairs.sort(key=lambda pair: pair[:2])
    return [(left, right) for _, _, left, right in pairs]
