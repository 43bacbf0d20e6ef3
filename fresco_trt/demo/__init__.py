"""The bundled demo model: its data, its training, its score and its weights.

Nothing on the request path imports this package except `pretrained`, which only names a folder.
"""
