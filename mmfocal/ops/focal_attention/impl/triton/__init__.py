from ...bias import combined_bias
from .tokens import pool_tokens


def unavailable_reasons(x):
    return ['not yet']


def unsupported_reasons(inputs):
    return ['not yet']


def focal_attention(inputs, bias):
    raise NotImplementedError
