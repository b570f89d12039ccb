"""Strings after which a text is over, as a table that compiled loops can look things up in."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


class Stop(eqx.Module):
    """Strings after which a response is over, in whatever tokens they are written.

    A string may begin and end within tokens. What has been read of all strings is one number, which every token moves
    by a table, so that a search costs one look-up per token. The response ends with the token that completes a string,
    and keeps it.

    Attributes:
        moves: what has been read, after each token: (states, V). The last state is that a string was found.

    ??? cite "Source"
        Aho and Corasick, *Efficient string matching: an aid to bibliographic search*, Communications of the ACM 18,
        1975.
    """

    moves: Int[Array, "states V"]

    def __init__(self, strings: Sequence[str], pieces: Sequence[bytes]):
        """Build the table.

        Args:
            strings: at least one, none empty.
            pieces: what each of the V tokens writes, as UTF-8; empty for tokens that write nothing.

        Raises:
            ValueError: a string is empty, or no tokens write it.
        """
        if isinstance(strings, str) or not strings or not all(strings):
            raise ValueError(f"stop must be strings that are not empty, got {strings!r}.")
        letters = set(b"".join(pieces))
        wanted = [string.encode() for string in strings]
        for string, code in zip(strings, wanted, strict=True):
            if not set(code) <= letters:
                raise ValueError(
                    f"the stop string {string!r} never comes, since no token of the vocabulary writes all of it: "
                    "leave it out, or name one that the model can write."
                )
        self.moves = jnp.asarray(_moves(wanted, pieces))

    def read(self, state: Int[Array, ""], token: Int[Array, ""]) -> Int[Array, ""]:
        """Return what has been read after one more token.

        Args:
            state: before it; 0 at the beginning.
            token: the token.
        """
        return self.moves[state, token].astype(state.dtype)

    def is_found(self, state: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
        """Whether a string has been read.

        Args:
            state: of any shape.
        """
        return state == self.moves.shape[0] - 1

    def found(self, tokens: Int[Array, " T"]) -> Bool[Array, " T"]:
        """Mark the token that completes a string, and all after it.

        Args:
            tokens: a response, (T,).
        """

        def step(state: Array, token: Array) -> tuple[Array, Array]:
            state = self.read(state, token)
            return state, state

        _, states = jax.lax.scan(step, jnp.zeros((), jnp.int32), tokens)
        return self.is_found(states)


def _moves(wanted: Sequence[bytes], pieces: Sequence[bytes]) -> np.ndarray:
    """The state after each token from each state, (states, V)."""
    begun = sorted({string[:size] for string in wanted for size in range(len(string))})  # the empty one first
    index = {part: state for state, part in enumerate(begun)}
    found = len(begun)
    letters = np.full((found + 1, 256), found, np.int16)
    for part, state in index.items():
        for letter in range(256):
            text = part + bytes([letter])
            if not any(string in text for string in wanted):
                rests = (text[start:] for start in range(len(text) + 1))
                letters[state, letter] = next(index[rest] for rest in rests if rest in index)
    lengths = np.array([len(piece) for piece in pieces])
    states = np.repeat(np.arange(found + 1, dtype=np.int16)[:, None], len(pieces), axis=1)
    for place in range(lengths.max(initial=0)):
        longer = np.flatnonzero(lengths > place)
        written = np.array([pieces[int(token)][place] for token in longer])
        states[:, longer] = letters[states[:, longer], written]
    return states
