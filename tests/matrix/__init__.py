"""The matrix: the same call shapes through each generation of each SDK, hooked in each way, before one provider.

``python tests/matrix`` makes an environment for each generation and runs them all; pytest runs what is installed here.
"""
