"""The one error that is meant for the person at the keyboard."""


class InputError(ValueError):
    """Something that was given to us cannot be used.

    The message is one sentence that says which file or row, what is wrong with it, and how to mend it.
    The command line prints it without a traceback and exits with status 2.
    """


class UnreadableError(InputError):
    """A file that could not be read just now (disk, network, memory): says nothing about its content."""


class RefusedScan(InputError):
    """A scan breaks a rule of quality.

    Attributes:
        rule: Which: a key of `brainfm_lib.data.quality.RULES`.
        lasting: Whether the same file would be refused again; False where disk, network or a program failed.
    """

    def __init__(self, rule: str, sentence: str, *, lasting: bool = True) -> None:
        super().__init__(sentence)
        self.rule, self.lasting = rule, lasting
