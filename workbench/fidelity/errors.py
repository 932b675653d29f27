"""What can be wrong with a folder of measurements, or with what is asked of it."""


class FidelityError(Exception):
    """Measurements that cannot be used or made; names the file or load, and what to do."""


class DamagedError(FidelityError):
    """A file of measurements that cannot be read, though it could be measured or made again."""
