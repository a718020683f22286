"""Errors for users: what is missing or wrong, where we looked, what was wanted, what to do next."""


class MonofaceError(Exception):
    """Anything that a user can put right; the command line prints it in a few lines, without a
    traceback.
    """


class AssetNotFoundError(MonofaceError, FileNotFoundError):
    """A file that the user has to bring (a licensed model, weights, a dataset) is not where we
    looked.

    Args:
        what: the asset, in the user's words.
        where: the paths that were tried.
        remedy: how it is obtained and where to put it.
        licence: under which terms it can be had, if it is not free.
    """

    def __init__(self, what: str, where: object, remedy: str, licence: str | None = None) -> None:
        text = f"{what} not found at {where}. {remedy}"
        super().__init__(f"{text} Licence: {licence}" if licence else text)
        self.parts = (what, str(where), remedy, licence)

    def __reduce__(self) -> tuple[type, tuple[str | None, ...]]:
        """For errors of other processes."""
        return type(self), self.parts


class DataError(MonofaceError, ValueError):
    """A file was found and read, but what it holds cannot be used."""
