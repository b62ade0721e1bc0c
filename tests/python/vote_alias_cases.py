"""Empty for now."""


def cases(size):
    return {}
