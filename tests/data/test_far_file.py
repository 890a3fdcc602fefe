"""A far file gives its bytes from any place on, whatever happens to the connection."""

from __future__ import annotations

import io
from typing import Any

import pytest

from luthier.data import far_file
from luthier.data.far_file import FarFile
from luthier.errors import UserError

CONTENT = bytes(range(256)) * 40


class Server:
    """Opens files of this content; connections break after so many reads.

    Args:
        breaks: reads after which each connection breaks, one after the other; later ones hold.
        sized: whether the size is known, without which nothing but reading on is possible.
    """

    def __init__(self, breaks: list[int] | None = None, *, sized: bool = True) -> None:
        self.breaks, self.sized, self.opened = breaks or [], sized, 0

    def __call__(self) -> Any:
        self.opened += 1
        return _Connection(self.breaks.pop(0) if self.breaks else 1_000, self.sized)


class _Connection(io.BytesIO):
    def __init__(self, reads: int, sized: bool) -> None:
        super().__init__(CONTENT)
        self.left, self.size = reads, len(CONTENT) if sized else None

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ConnectionResetError("reset by peer")
        return super().read(min(size or 0, 700))

    def seek(self, place: int, whence: int = 0) -> int:
        assert self.size is not None, "cannot seek"
        return super().seek(place, whence)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(far_file.time, "sleep", made.append)
    return made


@pytest.mark.parametrize("sized", [True, False])
def test_a_broken_connection_is_made_anew_where_it_broke(sized: bool, pauses: list[float]) -> None:
    server = Server([3, 0, 5], sized=sized)
    with io.BufferedReader(FarFile("s3://b/a", server), 1024) as file:
        assert file.read() == CONTENT
    assert (server.opened, pauses) == (4, [1.0, 4.0, 1.0])


def test_it_begins_anywhere() -> None:
    with io.BufferedReader(FarFile("s3://b/a", Server()), 512) as file:
        assert file.seek(5_000) == 5_000
        assert file.read(9) == CONTENT[5_000:5_009]
        assert file.seek(-4, io.SEEK_END) == len(CONTENT) - 4
        assert file.read() == CONTENT[-4:]
        assert file.seek(10) == 10
        assert file.read(300) == CONTENT[10:310]
    assert not FarFile("s3://b/a", Server(sized=False)).seekable()


def test_it_gives_up_and_says_how_to_go_on(pauses: list[float]) -> None:
    with pytest.raises(UserError) as caught:
        FarFile("s3://b/a", Server([0] * 9)).read(1)
    assert str(caught.value).startswith("s3://b/a: cannot be read on (reset by peer). See to the network")
    assert pauses == list(far_file.PAUSES)


def test_what_is_gone_is_not_waited_for(pauses: list[float]) -> None:
    def gone() -> Any:
        raise FileNotFoundError("a")

    with pytest.raises(UserError, match="s3://b/a: there is nothing at this address any more"):
        FarFile("s3://b/a", gone).read(1)
    assert not pauses
