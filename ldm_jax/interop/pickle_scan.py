"""The opcodes of a pickle, read before any is run: where it ends, and that running it takes no more than it has bytes."""

import io
import pickletools

from ldm_jax.core.errors import UserError

OPCODES_LIMIT = 4_000_000  # an opcode makes up to 216 bytes; a checkpoint with its optimizer has under 1 million
KEYS_LIMIT, PARTS_LIMIT = 10_000, 1_000  # keys that are tuples or long numbers, and the parts that the hash of one goes through
LONG = 2**61 - 1  # whole numbers from here on may be many with one hash
TUPLES = {"EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "FROZENSET"}
KEPT = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD", "MEMOIZE"}  # the lowest of what they take stays
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
KEYS = {"SETITEM": slice(1, 2), "SETITEMS": slice(1, None, 2), "DICT": slice(0, None, 2), "ADDITEMS": slice(1, None),
        "FROZENSET": slice(0, None)}  # which of what an opcode takes is hashed


class Hashes:
    """The parts that a hash would go through, of each object on the unpickler's stack and in its memo.

    A tuple whose parts are one smaller tuple twice, and so on, has 2^n of them in n opcodes. Objects that are not tuples
    count as one: they have no hash, or that of their identity.
    """

    def __init__(self):
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        self.keys = 0

    def step(self, opcode, argument) -> None:
        """Raises ValueError: a key that takes too long; IndexError: the stack is too short, at which the unpickler stops too."""
        name, before, stack = opcode.name, opcode.stack_before, self.stack
        if name == "MARK":
            return self.marks.append(len(stack))
        if name == "POP" and self.marks and self.marks[-1] == len(stack):
            return self.marks.pop()
        if pickletools.markobject in before:
            start = self.marks.pop() - before.index(pickletools.markobject)
        else:
            start = len(stack) - len(before)
        if start < 0:
            raise IndexError("stack")
        taken = stack[start:] if before else []
        del stack[start:]
        self._check_keys(taken[KEYS[name]] if name in KEYS else ())
        if name in PUTS:
            self.memo[argument] = stack[-1]
            return None
        if name == "MEMOIZE":
            self.memo[len(self.memo)] = taken[0]
        parts = 1
        if name in TUPLES:
            parts = min(1 + sum(taken), PARTS_LIMIT + 1)
        elif name in GETS:
            parts = self.memo.get(argument, 1)
        elif name in KEPT or name == "DUP":
            parts = taken[0]
        elif type(argument) is int and abs(argument) >= LONG:
            parts = 2
        stack += [parts] * len(opcode.stack_after)
        return None

    def _check_keys(self, keys) -> None:
        heavy = [parts for parts in keys if parts > 1]
        self.keys += len(heavy)
        if self.keys > KEYS_LIMIT or max(heavy, default=0) > PARTS_LIMIT:
            raise ValueError("keys of nested tuples or long numbers")


def measure(data: bytes, path) -> int:
    """Length in bytes of the pickle that `data` begins with; its opcodes are read, none is run.

    A memo index is an allocation in the C unpickler (one opcode of 5 bytes can ask for 32 GB): more than the pickle has
    bytes is refused. So are keys whose hash takes longer than the file.
    """
    hashes: Hashes | None = Hashes()
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count >= OPCODES_LIMIT:
                raise UserError(f"{path}: refused: a pickle of more than {OPCODES_LIMIT} opcodes: objects, not tensors")
            if opcode.name in PUTS and argument > len(data):
                raise UserError(f"{path}: refused: memo index {argument} in a pickle of {len(data)} bytes")
            if opcode.name == "STOP":
                return position + 1
            hashes = hashes and _stepped(hashes, opcode, argument, path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: damaged pickle: {str(error)[:200]}") from None
    raise UserError(f"{path}: damaged pickle: no end")


def _stepped(hashes: Hashes, opcode, argument, path) -> Hashes | None:
    """None after an opcode at which the unpickler stops with an error."""
    try:
        hashes.step(opcode, argument)
    except IndexError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: refused: its pickle has {error}, which take for ever to look up and which no checkpoint has") from None
    return hashes
